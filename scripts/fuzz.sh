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
		# To make what is found small takes a minute by default, each time: all there is.
		go test -run='^$' -fuzz="^$test\$" -fuzztime="$time" -fuzzminimizetime=10x "$package"
	done
done
