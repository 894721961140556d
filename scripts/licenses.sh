#!/bin/bash
# Lists the modules that are in the binaries, with the licences in their folders of the
# module cache.
#
#	scripts/licenses.sh         a page, which is docs/licenses.md
#	scripts/licenses.sh texts   the licences themselves, to go with the binaries
#
# A licence that it does not know is an error: somebody has to read it.
set -eu -o pipefail
cd "$(dirname "$0")/.."

# kinds FILE… prints the licences whose words are in them.
kinds() {
	local text found=()
	text=$(cat "$@" | tr -s '[:space:]' ' ')
	[[ $text != *"Apache License"* ]] || found+=(Apache-2.0)
	if [[ $text == *"Redistribution and use in source and binary forms"* ]]; then
		[[ $text == *"used to endorse or promote"* ]] && found+=(BSD-3-Clause) || found+=(BSD-2-Clause)
	fi
	[[ $text != *"Permission is hereby granted, free of charge"* ]] || found+=(MIT)
	[[ $text != *"Permission to use, copy, modify, and distribute this software for any purpose with or without fee"* ]] || found+=(ISC)
	[ ${#found[@]} -gt 0 ] || return 1
	local IFS=,
	echo "${found[*]}" | sed 's/,/, /g'
}

modules=$(CGO_ENABLED=0 GOOS=linux go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Dir}}{{end}}{{end}}' ./cmd/... | sort -u)
modules+=$'\n'"Go's standard library and runtime $(go env GOROOT)"

[ "${1:-}" = texts ] || cat <<'END'
# Licences

What is in the binaries beside matchlock itself, which is under the [MIT licence](../LICENSE). `make licenses` writes this page,
and `make release` puts the licences' texts beside the binaries. QEMU, the guest's kernel and e2fsprogs are not in them:
they are the host's.

| module | licence |
|---|---|
END
while read -r line; do
	name=${line% *} dir=${line##* }
	mapfile -t files < <(find "$dir" -maxdepth 1 -type f -iregex '.*/\(licen[cs]e\|copying\)\(\.txt\|\.md\)?' | sort)
	if ! kind=$(kinds "${files[@]}" /dev/null); then
		echo "licenses: $name: no licence that is known in $dir" >&2
		exit 1
	fi
	if [ "${1:-}" = texts ]; then
		printf '==== %s (%s)\n\n' "$name" "$kind"
		cat "${files[@]}"
		find "$dir" -maxdepth 1 -type f -iregex '.*/\(notice\|patents\)\(\.txt\|\.md\)?' -exec cat {} +
		echo
	else
		echo "| $name | $kind |"
	fi
done <<<"$modules"
