# The helper functions of a lane, for any POSIX shell.
#
# A lane defines them once at its start. Before them it sets
#   T   the token that frames its answers; never in the arguments of a program
#   K   the word that separates the records of a listing
#   nl  a newline
#   F   the flavour of the userland, `gnu` or `busybox`; empty: find out (see probe)
# Each answer is the output of a helper, then RS, the token, a space, a status, a newline.
# Statuses above 200 are ours, see answer.rs. Lines that begin with `#` are not sent.
# shellcheck disable=SC2154

export LC_ALL=C TZ=UTC0
unset CDPATH POSIXLY_CORRECT TIME_STYLE LS_COLORS BLOCK_SIZE GREP_OPTIONS
unalias -a
PATH=$PATH:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
umask 077
exec 2>/dev/null 3>&1

# a STATUS: ends an answer.
a() { printf '\036%s %d\n' "$T" "$1"; }

# q COMMAND...: runs a command; where it fails, its words and its status are the answer.
q() { "$@" 2>&1 </dev/null || { a $?; return 1; }; }

# v PATH...: answers with the attributes of paths, one line each.
v() { st "$@"; a 0; }

# g PATH: answers with the attributes of one path, or why there are none.
g() { st "$1" 2>&1; a $?; }

# o OWNER PATH: gives a new file away; an empty OWNER keeps it.
o() { [ -z "$1" ] || q chown -h "$1" -- "$2"; }

# x PATH: whether there is anything, a dangling link included.
x() { [ -e "$1" ] || [ -h "$1" ]; }

case $F in
'')
	if [ "$(find / -prune -printf p)" = p ]; then
		case $(stat -c %.9Y /) in
		[0-9]*.?????????) F=gnu ;;
		esac
	fi
	if [ -z "$F" ]; then
		case $(stat -c '%i %y' /) in
		[0-9]*' '????-??-??' '??:??:??*) F=busybox ;;
		esac
	fi
	;;
esac

case $F in
gnu)
	SF='%f %s %b %h %u %g %d %i %t %T %.9X %.9Y %.9Z'
	VF='%d %i %s %.9Y'
	CF="$VF %.9Z"
	st() { stat -c "$SF" -- "$@"; }
	# Records end with NUL; what comes after the last one is what find complained of.
	l() {
		e=$(find "$1" -maxdepth 1 -printf '%y %m %s %b %n %U %G %D %i %A@ %T@ %C@ %d %f\0%l\0' 2>&1 >&3)
		s=$?
		printf '%s' "$e"
		a $s
	}
	ln_() { ln -PT -- "$1" "$2"; }
	;;
busybox)
	SF='%f %s %b %h %u %g %d %i %t %T %x|%y|%z'
	VF='%d %i %s %y'
	CF="$VF %z"
	st() { stat -c "$SF" -- "$@"; }
	# Records begin with GS, the word K and a space; the last begins with GS, the word and `!`.
	l() {
		e=$({ { printf '%s\0' "$1"; find "$1" -mindepth 1 -maxdepth 1 -print0; } |
			xargs -0 stat -c "$(printf '\035%s ' "$K")$SF %n" -- >&3; } 2>&1)
		s=$?
		printf '\035%s!%s' "$K" "$e"
		a $s
	}
	ln_() { ln -T -- "$1" "$2"; }
	;;
esac

# probe DIR: what this host is and has; `root` comes last because it may hold anything.
probe() {
	printf 'flavour %s\n' "$F"
	printf 'uid %s\ngid %s\ngroups %s\n' "$(id -u)" "$(id -g)" "$(id -G)"
	printf 'system %s\n' "$(uname -s -m)"
	if command -v scp >/dev/null; then printf 'scp yes\n'; fi
	if touch -c -d @0.25 -- /nonexistent/scpfs; then printf 'times nanos\n'; fi
	case $(mv --help 2>&1) in *--exchange*) printf 'exchange yes\n' ;; esac
	case $(printf 12345 | { piece 1 3 2 2>&1 >/dev/null; cat; }) in
	"1+1 records in${nl}1+1 records out$nl"*45) printf 'pieces yes\n' ;;
	esac
	if ! x "$1"; then a 211; return; fi
	if ! [ -d "$1" ]; then a 212; return; fi
	if ! cd -P -- "$1" || ! [ -r . ]; then a 213; return; fi
	printf 'root %s\n' "$(pwd -P)"
	cd / || :
	a 0
}

# f PATH: sends a file; its attributes follow.
f() { scp -p -f "$1"; s=$?; st "$1"; a $s; }

# pc PATH: sends a file whose size is not what stat says, of /proc or /sys.
pc() { cat -- "$1" </dev/null; s=$?; a $s; }

# lost STATUS TEMP: ends a store that failed. The shell ends as well: what is left of the content
# must never be read as commands.
lost() { rm -f -- "$2"; a "$1"; exit 1; }

# as EXPECTED PATH: whether PATH is what it should be: `-` anything, `0` nothing, or a version; after
# a `c` with the time of its last change.
as() {
	case $1 in
	-) ;;
	0) ! x "$2" ;;
	'c '*) [ "$(stat -c "$CF" -- "$2")" = "${1#c }" ] ;;
	*) [ "$(stat -c "$VF" -- "$2")" = "$1" ] ;;
	esac
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
	[ "$(stat -c %s -- "$2")" = "$size" ] || lost 204 "$2"
	qs "$2" chmod "$7" -- "$2"
	qs "$2" touch -c -a -d "$atime" -- "$2"
	put "$@"
	P=
	vr "$4"
}

# fin TEMP OWNER MODE STAMP SYNC: what scp could not set on a new file.
fin() {
	[ -z "$2" ] || { qs "$1" chown -h "$2" -- "$1" && qs "$1" chmod "$3" -- "$1"; }
	[ -z "$4" ] || qs "$1" touch -c -m -d "$4" -- "$1"
	[ -z "$5" ] || flush "$1"
}

# flush PATH: to the disk, where there is a program for it.
flush() { sync -- "$1" || fsync "$1" || :; }

# acl PATH: whether the file has more than mode bits, which a replacement would lose.
acl() { case $(ls -ld -- "$1") in ??????????+*) return 0 ;; esac; return 1; }

# inplace TEMP PATH MODE: the content goes into the file that is there.
inplace() {
	i=
	{ i=1; cat -- "$1" 2>&1 >&4; } 4>"$2" || { [ -z "$i" ] || lost 205 "$1"; lost 1 "$1"; }
	# Who may write a file of somebody else's may not change its mode and times.
	chmod "$3" -- "$2"
	touch -c -r "$1" -- "$2"
	rm -f -- "$1"
}

# conflict TEMP PATH KEEP: what to do with complete content that is not to replace PATH. Sets R, the
# status of the store, and D, what has the content: the file made anew if it is gone, the file as it
# is if it has the same content, or KEEP, which must be a new name.
conflict() {
	D=$2
	if ! x "$2"; then
		R=207
		[ -n "$3" ] || lost 201 "$1"
	elif ! [ -h "$2" ] && cmp -s -- "$1" "$2"; then
		R=208
		rm -f -- "$1"
		return
	else
		R=206
		D=$3
		[ -n "$3" ] || lost 201 "$1"
	fi
	qs "$1" mv -nT -- "$1" "$D"
	# Some say nothing where they move nothing.
	! x "$1" || lost 201 "$1"
}

# vr PARENT: ends a store that succeeded.
vr() { st "$D" "$1"; a "$R"; }

# w HOW TEMP PATH PARENT EXPECTED OWNER MODE STAMP SYNC KEEP: receives a file.
w() {
	R=0 D=$3
	if [ "$1" = direct ]; then
		as "$5" "$3" || lost 201 "$2"
		# Into a directory, scp would write under the name in the record.
		if [ -d "$3" ]; then
			printf '%s\n' ': Is a directory'
			lost 1 "$2"
		fi
		scp -t "$3" || lost 205 "$2"
		chmod "$7" -- "$3"
		touch -c -m -d "$8" -- "$3"
	else
		scp -p -t "$2" || lost $? "$2"
		put "$@"
	fi
	vr "$4"
}

# put: the arguments of w; moves a complete temporary file to its place. Between the look at the file
# that is to be replaced and its replacement nobody else who does the same may come: both lock the
# file that they expect, where the host has a program for it.
put() {
	R=0 D=$3 i=
	fin "$2" "$6" "$7" "$8" "$9"
	case $5 in
	- | 0) ;;
	*) ! [ -f "$3" ] || { i=1; flock 9; settle "$@"; } 9<"$3" ;;
	esac
	[ -n "$i" ] || settle "$@"
	[ -z "$9" ] || flush "$4"
}

# settle: the arguments of w; see put.
settle() {
	if ! as "$5" "$3"; then
		conflict "$2" "$3" "${10}"
	elif [ -d "$3" ] && ! [ -h "$3" ]; then
		printf '%s\n' ': Is a directory'
		lost 1 "$2"
	elif [ "$1" = inplace ] || { [ "$5" != 0 ] && acl "$3"; }; then
		w=1
		[ -w "$3" ] || w=
		if [ -z "$w" ]; then printf '%s\n' ': Permission denied'; lost 1 "$2"; fi
		inplace "$2" "$3" "$7"
	elif [ "$5" = 0 ]; then
		# Where somebody was faster, this moves nothing.
		qs "$2" mv -nT -- "$2" "$3"
		! x "$2" || conflict "$2" "$3" "${10}"
	else
		qs "$2" mv -fT -- "$2" "$3"
	fi
}

# cpy SOURCE and the arguments of w: copies a file on the host.
cpy() {
	src=$1
	shift
	qs "$2" cp -- "$src" "$2"
	qs "$2" chmod "$7" -- "$2"
	put "$@"
	vr "$4"
}

# clean DIR TAG: removes what stores marked with TAG left behind.
clean() {
	for f in "$1"/.scpfs-"$2"????????.tmp; do
		[ ! -f "$f" ] || rm -f -- "$f"
	done
	a 0
}

# sock NAME PARENT: makes a socket, which no shell can, with what the host has. Under a short name
# first, and from within its directory, because an address has room for 107 bytes.
sock() (
	cd -- "$2" || exit 1
	if x "./$1"; then
		echo ': File exists'
		exit 1
	fi
	t=.scpfs-$$.sock
	if command -v perl >/dev/null; then
		perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0) && bind(S, sockaddr_un($ARGV[0])) or die ": $!\n"' -- "$t" || exit 1
	elif command -v python3 >/dev/null; then
		python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$t" || exit 1
	else
		echo ': Operation not supported'
		exit 1
	fi
	mv -fT -- "$t" "./$1"
)

# new PATH PARENT MODE OWNER: creates an empty file that was not there.
new() {
	if x "$1"; then a 202; return; fi
	if ! e=$( (set -C; : >"$1") 2>&1); then
		if x "$1"; then a 202; return; fi
		# A shell's own words for a failed redirection differ; touch's do not.
		q touch -- "$1" || return
	fi
	q chmod "$3" -- "$1" && o "$4" "$1" && v "$1" "$2"
}

# noreplace FROM TO FROMDIR TODIR: renames, unless something has the name already.
noreplace() {
	if x "$2"; then a 202; return; fi
	q mv -fT -- "$1" "$2" && v "$2" "$3" "$4"
}
