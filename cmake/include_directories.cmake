# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0

# Imported targets of the ROS wheels on PyPI carry include directories of the machine that built the wheels
# (/opt/python/cp3XX-cp3XX/...), and CMake stops at the first that does not exist. Drop those; the generated
# code finds the headers of Python and NumPy through its own find_package(Python3). On a regular ROS 2
# installation every directory exists and nothing changes.
function(drop_missing_include_directories)
  get_property(targets DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}" PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(NOT directories)
      continue()
    endif()
    set(existing "")
    foreach(directory IN LISTS directories)
      if(directory MATCHES "^\\$<" OR EXISTS "${directory}")
        list(APPEND existing "${directory}")
      endif()
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${existing}")
  endforeach()
endfunction()

# Keep this machine's Python and NumPy headers out of what the target exports: whoever links against the
# installed interfaces has headers of their own. (CMake also refuses to export them when the virtual
# environment lies inside the source tree.)
function(keep_include_directories_private target)
  get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
  set(private "")
  foreach(directory IN LISTS directories)
    if(directory AND NOT directory MATCHES "^\\$<")
      set(directory "$<BUILD_INTERFACE:${directory}>")
    endif()
    list(APPEND private "${directory}")
  endforeach()
  set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${private}")
endfunction()
