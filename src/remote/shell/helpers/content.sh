# How files come and go; the other half of `content.rs`, `plain.rs` and `pieces.rs`.
# shellcheck disable=SC2154

# odd PATH: whether it is something that must not be opened: a FIFO would never answer.
odd() { x "$1" && ! [ -f "$1" ]; }

# f PATH: sends a file; its attributes follow.
f() {
	if odd "$1"; then
		# As scp says it. The scp of dropbear would wait for somebody to write to a FIFO.
		printf '\001%s: not a regular file\n' "$1"
		a 1
		return
	fi
	scp -p -f "$1"
	s=$?
	st "$1"
	a $s
}

# fc PATH: sends a file without scp: its attributes, READY, content, READY, its attributes.
fc() {
	if odd "$1"; then
		say 'not a regular file'
		a 1
		return
	fi
	st "$1" 2>&1 || { a $?; return; }
	a 203
	e=$(cat -- "$1" 2>&1 >&3 </dev/null)
	s=$?
	a 203
	if [ $s = 0 ]; then st "$1"; else printf '%s\n' "$e"; fi
	a $s
}

# pc PATH: sends a file whose size is not what stat says, of /proc or /sys.
pc() { cat -- "$1" </dev/null; s=$?; a $s; }

# lost STATUS TEMP: ends a store that failed. The shell ends as well: what is left of the content
# must never be read as commands.
lost() { rm -f -- "$2"; a "$1"; exit 1; }

# look EXPECTED PATH: the version of PATH, in the words of EXPECTED.
look() { case $1 in 'c '*) vc "$2" ;; *) vf "$2" ;; esac; }

# as EXPECTED PATH TEMP: whether PATH is what it should be: `-` anything, `0` nothing, or a version;
# after a `c` with the time of its last change. Where a look says nothing of what is there, which may
# be because it was killed, another does; no look is no difference.
as() {
	case $1 in
	-) return 0 ;;
	0) ! x "$2"; return ;;
	esac
	v=$(look "$1" "$2")
	case $v in *[0-9]*) ;; *) v=$(look "$1" "$2") ;; esac
	case $v in
	*[0-9]*) ;;
	*) ! x "$2" || { say 'Input/output error'; lost 1 "$3"; } ;;
	esac
	[ "$v" = "${1#c }" ]
}

# qs TEMP COMMAND...: as q, within a store.
qs() { t=$1; shift; "$@" 2>&1 </dev/null || lost $? "$t"; }

# piece OFFSET LENGTH BLOCK: copies so many bytes, not one more, to that place of its output.
piece() { dd bs="$3" seek="$1" count="$2" iflag=fullblock,count_bytes oflag=seek_bytes; }

# wb TEMP: makes the file that pieces go into. It goes when this lane ends before `we` is done, also
# where that is because nobody listens any more.
wb() {
	P=$1
	trap '[ -z "$P" ] || rm -f -- "$P"' EXIT
	trap 'exit 1' HUP PIPE TERM
	(set -C; : >"$1") || qs "$1" touch -- "$1"
}

# wp TEMP OFFSET LENGTH RECORDS: receives a piece. Answers when it stands ready to read; once it has
# read all, it says nothing more, and the next line of the lane answers for both.
wp() {
	# Without this a file that another lane has given up would be made again.
	[ -f "$1" ] || lost 204 "$1"
	e=
	# Input that ends too early is no failure for dd, but what it counts shows it.
	if { a 203; e=$(piece "$2" "$3" 65536 2>&1 >&4); } 4<>"$1"; then
		case $e in "$4 records in$nl$4 records out"*) return ;; esac
	fi
	# Before it speaks: where nobody listens any more, that ends the shell.
	rm -f -- "$1"
	printf '%s\n' "${e%%"$nl"*}"
	lost 1 "$1"
}

# we SIZE ATIME and the arguments of w: moves a file whose pieces are complete to its place.
we() {
	size=$1
	atime=$2
	shift 2
	[ "$(sz "$2")" = "$size" ] || lost 204 "$2"
	qs "$2" chmod "$7" -- "$2"
	qs "$2" touch -c -a "$atime" -- "$2"
	put "$@"
	P=
	vr "$4"
}

# fin TEMP OWNER MODE STAMP SYNC: what scp could not set on a new file.
fin() {
	[ -z "$2" ] || { qs "$1" chown -h "$2" -- "$1" && qs "$1" chmod "$3" -- "$1"; }
	[ -z "$4" ] || qs "$1" touch -c -m "$4" -- "$1"
	[ -z "$5" ] || flush "$1"
}

# flush PATH: to the disk, where there is a program for it.
flush() { sync -- "$1" || fsync "$1" || :; }

# acl PATH: whether the file has more than mode bits, which a replacement would lose.
acl() { case $(ls -ld -- "$1") in ??????????+*) return 0 ;; esac; return 1; }

# inplace TEMP PATH MODE SYNC: the content goes into the file that is there.
inplace() {
	i=
	{ i=1; cat -- "$1" 2>&1 >&4; } 4>"$2" || { [ -z "$i" ] || lost 205 "$1"; lost 1 "$1"; }
	# Who may write a file of somebody else's may not change its mode and times.
	chmod "$3" -- "$2"
	touch -c -r "$1" -- "$2"
	[ -z "$4" ] || flush "$2"
	rm -f -- "$1"
}

# same A B: whether two files have the same content; no, where nothing can tell.
same() {
	cmp -s -- "$1" "$2"
	case $? in
	0) ;;
	127) e=$(sha256sum <"$1") && [ "$e" = "$(sha256sum <"$2")" ] ;;
	*) return 1 ;;
	esac
}

# conflict TEMP PATH KEEP: what to do with complete content that is not to replace PATH. Sets R, the
# status of the store, and D, what has the content: the file made anew if it is gone, the file as it
# is if it has the same content, or KEEP, which must be a new name.
conflict() {
	D=$2
	if ! x "$2"; then
		R=207
		[ -n "$3" ] || lost 201 "$1"
	elif [ -f "$2" ] && ! [ -h "$2" ] && same "$1" "$2"; then
		R=208
		rm -f -- "$1"
		return
	else
		R=206
		D=$3
		[ -n "$3" ] || lost 201 "$1"
	fi
	anew "$1" "$D" || lost 201 "$1"
}

# anew TEMP PATH: moves a complete file to a name that must be new, in one step with the look whether
# it is; fails where somebody was faster. GNU's `mv -n` is renameat2(2); elsewhere only a link is as good.
anew() {
	if [ "$MV" = -fT ]; then
		e=$(mv -nT -- "$1" "$2" 2>&1)
	elif e=$(ln_ "$1" "$2" 2>&1 </dev/null); then
		rm -f -- "$1"
	elif ! x "$2"; then
		# There are no hard links here.
		e=$(mv_ "$1" "$2" 2>&1 </dev/null)
	fi
	s=$?
	# Some mv say nothing where they move nothing, others fail.
	x "$1" || return 0
	! x "$2" || return 1
	[ $s != 0 ] || s=1
	printf '%s\n' "$e"
	lost $s "$1"
}

# vr PARENT: ends a store that succeeded.
vr() { st "$D" "$1"; a "$R"; }

# fit TEMP PATH EXPECTED: goes on if content can go into PATH itself.
fit() {
	as "$3" "$2" "$1" || lost 201 "$1"
	# Into a directory, scp would write under the name in the record.
	if [ -d "$2" ]; then say 'Is a directory'; lost 1 "$1"; fi
	if odd "$2"; then say 'Invalid argument'; lost 1 "$1"; fi
}

# w HOW TEMP PATH PARENT EXPECTED OWNER MODE STAMP SYNC KEEP: receives a file.
w() {
	R=0 D=$3
	if [ "$1" = direct ]; then
		fit "$2" "$3" "$5"
		scp -t "$3" || lost 205 "$2"
		chmod "$7" -- "$3"
		touch -c -m "$8" -- "$3"
		[ -z "$9" ] || flush "$3"
	else
		scp -p -t "$2" || lost $? "$2"
		put "$@"
	fi
	vr "$4"
}

# exact N: copies so many bytes of its input, not one more; where it may read more than it copies,
# nothing comes behind them.
exact() {
	case $CS in
	dd) dd bs=65536 count="$1" iflag=fullblock,count_bytes ;;
	# What BusyBox says of a full disk says nothing, unless it is cat.
	head) head -c "$1" 2>/dev/null | cat ;;
	*) dd bs=1 count="$1" ;;
	esac
}

# wx SIZE ATIME and the arguments of w: receives a file without scp. Says READY once the file is open.
wx() {
	size=$1 atime=$2
	shift 2
	R=0 D=$3 i=
	if [ "$1" = direct ]; then
		fit "$2" "$3" "$5"
		qs "$2" touch -c -- "$3"
		i=$3
		[ -w "$3" ] || ! x "$3" || { say 'Permission denied'; lost 1 "$2"; }
	else
		i=$2
		(set -C; : >"$2") || qs "$2" touch -- "$2"
	fi
	e=
	s=205
	if { a 203; e=$(exact "$size" 2>&1 >&4); s=$?; } 4>"$i" && [ $s = 0 ] && [ "$(sz "$i")" = "$size" ]; then
		if [ "$1" = direct ]; then
			chmod "$7" -- "$3"
			touch -c -m "$8" -- "$3"
			[ -z "$9" ] || flush "$3"
		else
			qs "$2" chmod "$7" -- "$2"
			qs "$2" touch -c -a "$atime" -- "$2"
			put "$@"
		fi
		vr "$4"
		return
	fi
	printf '%s\n' "$e"
	if [ "$1" = direct ]; then lost 205 "$2"; else lost 1 "$2"; fi
}

# lock: takes the lock of descriptor 9, where there is a program for it. Whoever else stores the file
# has it for a moment; a program that keeps it for its own reasons keeps nothing from being stored.
# shellcheck disable=SC2034
lock() {
	for n in 1 2 3 4 5; do
		flock -n 9
		[ $? = 1 ] || return
		sleep 1
	done
}

# put: the arguments of w; moves a complete temporary file to its place. Between the look at the file
# that is to be replaced and its replacement nobody else who does the same may come: both lock the
# file that they expect, where the host has a program for it.
put() {
	R=0 D=$3 i=
	fin "$2" "$6" "$7" "$8" "$9"
	case $5 in
	- | 0) ;;
	*) ! [ -f "$3" ] || { i=1; lock; settle "$@"; } 9<"$3" ;;
	esac
	[ -n "$i" ] || settle "$@"
	[ -z "$9" ] || flush "$4"
}

# settle: the arguments of w; see put.
settle() {
	if ! as "$5" "$3" "$2"; then
		conflict "$2" "$3" "${10}"
	elif [ -d "$3" ] && ! [ -h "$3" ]; then
		say 'Is a directory'
		lost 1 "$2"
	elif [ "$1" = inplace ] && odd "$3"; then
		say 'Invalid argument'
		lost 1 "$2"
	elif [ "$1" = inplace ] || { [ "$5" != 0 ] && acl "$3"; }; then
		w=1
		[ -w "$3" ] || w=
		if [ -z "$w" ]; then say 'Permission denied'; lost 1 "$2"; fi
		inplace "$2" "$3" "$7" "$9"
	elif [ "$5" = 0 ]; then
		anew "$2" "$3" || conflict "$2" "$3" "${10}"
	else
		qs "$2" mv_ "$2" "$3"
	fi
}

# cpy SOURCE and the arguments of w: copies a file on the host.
cpy() {
	src=$1
	shift
	if odd "$src"; then say 'Invalid argument'; lost 1 "$2"; fi
	qs "$2" cp -- "$src" "$2"
	qs "$2" chmod "$7" -- "$2"
	put "$@"
	vr "$4"
}

