#!/bin/sh
# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
#
# build_interfaces.sh VENV BUILD: run CMakeLists.txt against the ROS wheels of the virtual environment VENV.
# The package is installed into BUILD/prefix, with symbolic links to the Python sources so that edits are live.
# Written for ROS on PyPI only: on a ROS 2 installation colcon does all this.
set -e
venv=$(cd "$1" && pwd)
mkdir -p "$2"
build=$(cd "$2" && pwd)
source=$(cd "$(dirname "$0")/.." && pwd)
log=$build/build.log

PATH=$venv/bin:$PATH
AMENT_PREFIX_PATH=$venv
CMAKE_PREFIX_PATH=$venv
unset PYTHONPATH LD_LIBRARY_PATH ROS_DISTRO _ROS_WHEELS_BOOTSTRAP_COMPLETE
export PATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH

fail() {
  tail -n 40 "$log" >&2
  echo "The build failed; its whole log: $log" >&2
  exit 1
}

echo "    configuring"
cmake -S "$source" -B "$build/cmake" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF \
  -DCMAKE_INSTALL_PREFIX="$build/prefix" -DPython3_EXECUTABLE="$venv/bin/python" \
  -DAMENT_CMAKE_SYMLINK_INSTALL=ON >"$log" 2>&1 || fail
echo "    generating and compiling the interfaces"
cmake --build "$build/cmake" >>"$log" 2>&1 || fail
echo "    installing into $2/prefix"
# Links to files that are gone from the source tree would stay behind.
[ ! -d "$build/prefix" ] || find "$build/prefix" -xtype l -delete
# (from there, because ament leaves a list of the links in the working directory)
(cd "$build/cmake" && cmake --install . >>"$log" 2>&1) || fail

packages=$build/prefix/$("$venv/bin/python" -c 'import sys
print(f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages")')
sed -e "s|@DISTRO@|$(basename "$venv")|g" -e "s|@VENV@|$venv|g" -e "s|@BUILD@|$build|g" -e "s|@PYTHONPATH@|$packages|g" \
  -e "s|@ENGINE@|$(dirname "$venv")/engine/bin/python|g" "$source/tools/env.sh.in" >"$build/env.sh"
sed -e "s|@BUILD@|$build|g" "$source/tools/timebill.in" >"$build/timebill"
chmod +x "$build/timebill"
