#!/bin/sh
# Python's C headers, which a bare Debian lacks: native/python-headers.sh PYTHON FOLDER
# Prints the folder that holds Python.h: Python's own, or FOLDER/usr/include/pythonX.Y with Debian's package unpacked
# into FOLDER, so that nothing is installed into the system. Says in one sentence what to do when neither works.
set -eu
python=$1 folder=$2
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
unpacked=$folder/usr/include/python$version
package=libpython$version-dev

if [ -f "$include/Python.h" ]; then echo "$include"; exit; fi
if [ -f "$unpacked/Python.h" ]; then echo "$unpacked"; exit; fi

download() { (cd "$folder" && apt-get download -qq "$package" && dpkg -x "$package"_*.deb .) > /dev/null 2>&1; }
mkdir -p "$folder"
if download || { [ "$(id -u)" -eq 0 ] && apt-get update -qq > /dev/null 2>&1 && download; }; then
  echo "$unpacked"
else
  echo "Python's C headers are missing: install them (Debian: apt-get install python$version-dev)" >&2
  exit 1
fi
