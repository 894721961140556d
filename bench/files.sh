# bench/files.sh TASK FOLDER: does something with files, in a guest, and says how
# long it took in ms, or in µs for each file. It is run by bash, as root.
set -eu -o pipefail
source=${0%/*}
# What one guest makes the other does not remove: a server may keep a removed file open,
# and then its memory is not there for the next one.
big=big.$HOSTNAME new=new.$HOSTNAME
mkdir -p "$2"
cd "$2"

# took runs a command by the guest's clock.
took() {
	local began=$EPOCHREALTIME
	"$@" >/tmp/said
	local ended=$EPOCHREALTIME
	local us=$((10#${ended/./} - 10#${began/./}))
	printf 'took %d.%03d\n' $((us / 1000)) $((us % 1000))
}

# forget has the guest's kernel know nothing of files, and no work left with them.
forget() {
	sync
	echo 3 >/proc/sys/vm/drop_caches
}

# have unpacks what is not here: the host has it in the shared folder.
have() { [ -e "$1" ] || tar -xf "$source/$1.tar"; }

case $1 in
write)
	rm -f "$big"
	forget
	took dd if=/dev/zero of="$big" bs=1M count=256 status=none
	;;
read)
	[ -e "$big" ] || dd if=/dev/zero of="$big" bs=1M count=256 status=none
	forget
	took dd if="$big" of=/dev/null bs=1M status=none
	;;
status)
	have repo
	git -C repo status >/dev/null
	took git -C repo status --porcelain
	[ ! -s /tmp/said ]
	;;
find)
	have tree
	forget
	took find tree -type f
	[ "$(wc -l </tmp/said)" = 20000 ]
	;;
stat)
	have tree
	forget
	perl -e '
		use Time::HiRes "time";
		my @files = map { my $d = $_; map { "tree/$d/$_" } 0 .. 99 } 0 .. 19;
		my $began = time;
		for (@files) { -s $_ or die }
		printf "took %.1f\n", (time - $began) * 1e6 / @files'
	;;
create | remove)
	rm -rf "$new"
	mkdir "$new"
	sync
	[ -e /tmp/new.tar ] || cp "$source/new.tar" /tmp
	if [ "$1" = create ]; then
		took tar -xf /tmp/new.tar -C "$new"
	else
		tar -xf /tmp/new.tar -C "$new"
		took rm -r "$new"
	fi
	;;
esac
