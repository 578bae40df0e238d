# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0

# install_executable(NAME MODULE INTERRUPTED DIRECTORY...): a script NAME that runs main() of MODULE, and
# ends with the status INTERRUPTED if it is interrupted before that begins.
# It names the interpreter that the interfaces are built for, whatever "python3" is on the path later.
function(install_executable name module interrupted)
  set(script "${CMAKE_CURRENT_BINARY_DIR}/executables/${name}")
  configure_file(cmake/executable.py.in "${script}" @ONLY FILE_PERMISSIONS
    OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
  foreach(directory IN LISTS ARGN)
    install(PROGRAMS "${script}" DESTINATION "${directory}")
  endforeach()
endfunction()
