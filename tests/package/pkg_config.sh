#!/bin/sh
# pkg_config.sh PREFIX LIBDIR SOURCES FOLDER KIND CXX: builds and runs the consumer with a compiler and pkg-config alone.
set -eu
prefix=$1 libdir=$2 sources=$3 folder=$4 kind=$5 cxx=$6
PKG_CONFIG_PATH=$prefix/$libdir/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
export PKG_CONFIG_PATH
mkdir -p "$folder"
# The words of pkg-config are split on purpose.
# shellcheck disable=SC2046
case $kind in
  static)
    "$cxx" -std=c++20 -Wall -Wextra $(pkg-config --cflags llminfer) "$sources/main.cpp" "$sources/second.cpp" \
      -o "$folder/consumer" $(pkg-config --static --libs llminfer) ;;
  shared)
    "$cxx" -std=c++20 -Wall -Wextra $(pkg-config --cflags llminfer) "$sources/main.cpp" "$sources/second.cpp" \
      -o "$folder/consumer" $(pkg-config --libs llminfer) -Wl,-rpath,"$prefix/$libdir" ;;
esac
shift 6
exec "$folder/consumer" "$@"
