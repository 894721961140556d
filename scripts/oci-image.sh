#!/bin/bash
# Makes DIR, an OCI layout with one image, tagged "latest", out of the root tar
# BASE and of as many small layers above it as LAYERS asks for (default 1: BASE
# alone).
#
#	scripts/oci-image.sh DIR BASE [LAYERS]
#
# Layer N writes /layers/N and N into /layers/top, and each even N deletes
# /layers/N-1, so that what a guest finds there tells whether all were laid in
# order: with 60, /layers/top holds 60, and of 2 to 60 the even ones are left.
set -eu -o pipefail

dir=$1 base=$2 layers=${3:-1}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The layout grows beside its place: a broken run leaves no half image behind.
mkdir -p "$(dirname "$dir")"
rm -rf "$dir" "$dir.part"
umoci init --layout "$dir.part"
umoci new --image "$dir.part:latest"
umoci config --image "$dir.part:latest" --config.cmd /bin/sh
umoci raw add-layer --image "$dir.part:latest" "$base"

for ((n = 2; n <= layers; n++)); do
	rm -rf "$work/layers"
	mkdir "$work/layers"
	echo "$n" | tee "$work/layers/$n" >"$work/layers/top"
	((n % 2)) || touch "$work/layers/.wh.$((n - 1))"
	tar --create --file="$work/layer.tar" --directory="$work" --sort=name \
		--owner=0 --group=0 --numeric-owner --mtime=@0 layers
	umoci raw add-layer --image "$dir.part:latest" "$work/layer.tar"
done

umoci gc --layout "$dir.part"
mv "$dir.part" "$dir"
