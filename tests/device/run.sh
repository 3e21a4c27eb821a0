#!/bin/sh
# One command for a machine with a GPU, about ten minutes: the tests of the device, then the table for
# docs/benchmarks.md on stdout. What goes on is told on stderr.
#
#   sh tests/device/run.sh > table.md
#   sh tests/device/run.sh --device cpu --tiny      # tries this script where there is no GPU
#
# PYTHON names the interpreter; --variant another shape than that of instruct-v0.3.
set -eu
cd "$(dirname "$0")/../.."
device=cuda
is_next=
for argument in "$@"; do
	[ -z "$is_next" ] || device=$argument
	is_next=
	[ "$argument" != --device ] || is_next=yes
done
M7B_TEST_DEVICE=$device "${PYTHON:-python3}" -m pytest -q -p no:cacheprovider -rs tests/device/test_device.py >&2
exec "${PYTHON:-python3}" -m tests.device.measure "$@"
