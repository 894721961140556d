#!/bin/bash
# Runs each fuzz test for TIME, one after the other, and stops at the first find.
#
#	scripts/fuzz.sh TIME [PACKAGE…]
set -eu -o pipefail

time=$1
shift
packages=$(go list "${@:-./...}")
for package in $packages; do
	tests=$(go test -list='^Fuzz' "$package" | sed -n '/^Fuzz/p')
	for test in $tests; do
		echo "== $package $test"
		go test -run='^$' -fuzz="^$test\$" -fuzztime="$time" "$package"
	done
done
