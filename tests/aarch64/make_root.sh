#!/usr/bin/env bash
# An emulated aarch64 machine: Debian's Python for arm64 in a folder, run by qemu's user-mode emulation in a chroot.
#
#     make_root.sh FOLDER REPOSITORY
#
# Needs root, and Debian's packages qemu-user-static and debootstrap. Packages come from the registries that this
# machine has configured. Emulated: its times mean nothing.
set -euo pipefail
root=$1/root wheels=$1/root/wheels repository=$2

# The kernel hands arm64 programs to qemu (flag F: opened now, so that it is found inside the chroot too).
registry=/proc/sys/fs/binfmt_misc
[ -e $registry/register ] || mount -t binfmt_misc none $registry
[ -e $registry/qemu-aarch64 ] || printf '%s' ':qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64-static:F' >$registry/register

if [ ! -e "$1/.packages" ]; then
  mkdir -p "$1"
  rm -rf "$root"
  debootstrap --arch=arm64 --foreign --variant=minbase \
    --include=python3,python3-venv,python3-pip,ca-certificates,libgomp1,libstdc++6 bookworm "$root" >"$1/debootstrap.log"
  # The second stage would run each package's script under emulation, for half an hour; Python needs none of them.
  for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
  rm -rf "$root"/var/cache/apt/archives/*.deb
  # Files in place of the kernel's /proc: the chip that the NPU's runtime asks for, and what Python wants.
  mkdir -p "$root/proc/device-tree" "$root/proc/self"
  printf 'friendlyarm,nanopc-t6\0rockchip,rk3588\0' >"$root/board-compatible"
  touch "$1/.packages"
fi
if [ ! -e "$1/.wheels" ]; then
  python3 -m pip download --quiet --dest "$wheels" --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
    --platform manylinux2014_aarch64 --only-binary=:all: \
    numpy pillow typer rich pydantic safetensors onnxruntime tomli-w setuptools wheel rknn-toolkit-lite2
  touch "$1/.wheels"
fi
inside() { chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 HOME=/ "$@"; }
if [ ! -e "$1/.venv" ]; then
  inside /usr/bin/python3 -m venv --without-pip /venv
  inside /usr/bin/python3 -m pip --python /venv/bin/python install --quiet --no-index --find-links /wheels --no-compile \
    setuptools wheel numpy pillow typer rich pydantic safetensors onnxruntime tomli-w rknn-toolkit-lite2
  touch "$1/.venv"
fi
# vitedge itself, as `pip install .` does it; each time, since it is what is tested.
rm -rf "$root/vitedge-source"
mkdir -p "$root/vitedge-source"
git -C "$repository" ls-files -z -- vitedge setup.cfg pyproject.toml README.md LICENSE |
  tar -C "$repository" --null --files-from=- -c | tar -x -C "$root/vitedge-source"
inside /usr/bin/python3 -m pip --python /venv/bin/python install --quiet --no-index --find-links /wheels \
  --no-build-isolation --no-deps --force-reinstall --no-compile /vitedge-source
