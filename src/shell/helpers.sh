# The helper functions of a lane, for any POSIX shell.
#
# A lane defines them once at its start: these, those of `helpers/content.sh`, and those of the
# userland, which are in files of their own. Before them it sets
#   T   the token that frames its answers; never in the arguments of a program
#   K   the word that separates the records of a listing
#   nl  a newline
# and what `helpers/probe.sh` has found out on the first lane:
#   F   the flavour of the userland: `gnu`, `busybox`, `bsd` or `ls`
#   MV  the options of mv that keep it from moving into a directory, as far as it has such: `-fT`;
#       `-Tf` if it has that but is no rename(2) for all kinds of files; `-fh` if links to directories are all it
#       does not move into; `-f`
#   LN  the same for ln
#   TH  the option of touch that keeps it from following a link, if it has it
#   TR  whether there is a truncate
#   SC  whether content comes and goes by scp
#   CS  what counts content elsewhere: `dd`, `head` or `slow`, which is a byte at a time
#   FD  the directory in which descriptors have names
#   XA  whether cp copies all attributes of a file: `y`; `c` with its security context
#   LA  whether ls tells which files have an ACL
# Each answer is the output of a helper, then RS, the token, a space, a status, a newline.
# Statuses above 200 have names, which the table in answer.rs defines. Lines that begin with `#` are not sent.
#
# A userland defines
#   st PATH...   prints the attributes of paths
#   l DIR        answers with a listing
#   look FOLLOW CHANGED PATH...  prints for each path its version, with the time of its last change if
#                CHANGED is not empty, a bar, its permissions, a space, and UID:GID; follows links if
#                FOLLOW is not empty
#   sz PATH      prints the size of a file, following links
#   fs PATH      prints the state of a filesystem, ft its type
#   ln_ OLD NEW  makes a hard link
# shellcheck disable=SC2154

# What a login may have left in the environment.
set +efuvxC
export LC_ALL=C TZ=UTC0
unset CDPATH POSIXLY_CORRECT TIME_STYLE LS_COLORS BLOCK_SIZE DF_BLOCK_SIZE QUOTING_STYLE GREP_OPTIONS
# With this the shell would leave when nothing is asked for some time.
unset TMOUT
unalias -a
unset -f cat chmod chown cmp cp dd df find flock fsync head id ln ls mkdir mkfifo mknod mv perl \
	python3 readlink rm rmdir scp sha256sum sleep stat sync touch truncate uname xargs
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

# own OWNER PATH: gives something new away; an empty OWNER keeps it.
own() { [ -z "$1" ] || q chown -h "$1" -- "$2"; }

# end PID WORD: kills the shell of a connection that was given up, with what it runs, so that no request
# that arrives late is carried out after what came in its place. WORD is in its arguments.
end() {
	c=
	[ ! -r "/proc/$1/cmdline" ] || IFS= read -r c <"/proc/$1/cmdline"
	case $c in *"$2"*) kill -9 -- "-$1" || kill -9 "$1" ;; esac
}

# x PATH: whether there is anything, a dangling link included.
x() { [ -e "$1" ] || [ -h "$1" ]; }

# say TEXT: as a program complains; fails.
say() {
	printf ': %s\n' "$1"
	return 1
}

# mv_ FROM TO: renames; never moves into a directory.
mv_() {
	if [ "$MV" = -fT ]; then
		mv -fT -- "$1" "$2"
		return
	fi
	if [ -d "$2" ] && ! [ -h "$2" ]; then
		# Linux says so of a directory that the file is in.
		case $1/ in "$2"/*) say 'Directory not empty'; return ;; esac
		if ! [ -d "$1" ] || [ -h "$1" ]; then say 'Is a directory'; return; fi
		# POSIX rename(): an empty directory is replaced, and no other. It must not lose itself.
		case $2/ in "$1"/*) say 'Invalid argument'; return ;; esac
		rmdir -- "$2" || return
	elif [ -d "$1" ] && ! [ -h "$1" ] && x "$2"; then
		say 'Not a directory'
		return
	elif [ "$MV" != -fh ] && [ -h "$2" ] && [ -d "$2" ] && x "$1"; then
		# mv would follow a link to a directory; that of BusyBox refuses it with -T.
		rm -f -- "$2" || return
	fi
	e=$(mv "$MV" -- "$1" "$2" 2>&1) && return
	s=$?
	case $e in
	# BusyBox stumbles over a link to itself.
	*' loop'* | *'Too many'*link*)
		if [ -h "$2" ] && ! [ -e "$2" ] && x "$1"; then
			rm -f -- "$2" && mv "$MV" -- "$1" "$2"
			return
		fi
		;;
	esac
	printf '%s\n' "$e"
	return $s
}

# free PATH: whether a new link can have the name; ln would put it into a directory.
free() { [ "$LN" = -T ] || ! x "$1" || say 'File exists'; }

# sym TARGET PATH: makes a symlink.
# shellcheck disable=SC2086
sym() { free "$2" && ln -s $LN -- "$1" "$2"; }

# portable_ln OLD NEW: makes a hard link, where ln follows no link.
# shellcheck disable=SC2086
portable_ln() { free "$2" && ln $LN -- "$1" "$2"; }

# trunc SIZE PATH: cuts a file, or makes it longer by a hole.
trunc() {
	if [ -n "$TR" ]; then
		truncate -c -s "$1" -- "$2"
	elif ! x "$2"; then
		say 'No such file or directory'
	elif ! [ -f "$2" ]; then
		say 'Invalid argument'
	else
		# POSIX dd: what lies behind the place that seek= leads to is cut off.
		e=$(dd if=/dev/null of="$2" bs=1 seek="$1" count=0 2>&1) || { printf '%s\n' "$e"; return 1; }
	fi
}

# unchanged EXPECTED PATH: whether a file is still that version, as `look` prints it.
unchanged() {
	c=
	case $1 in 'c '*) c=c ;; esac
	e=$(look '' "$c" "$2" 2>&1)
	[ "${e%"|"*}" != "${1#c }" ] || return 0
	if x "$2"; then a "$CONFLICT"; else printf '%s\n' "$e"; a 1; fi
	return 1
}

# tch OPTIONS STAMP PATH: sets times; an empty STAMP is now.
# shellcheck disable=SC2086
tch() {
	if [ -z "$TH" ] && [ -h "$3" ]; then say 'Operation not supported'; return; fi
	touch -c $TH $1 $2 -- "$3"
}

# The permissions of what is made come from a umask, so that an ACL that it inherits holds; chmod adds
# what a creation cannot give. What is given away is nobody else's to use before it has its owner.

# bits MODE PATH: adds execute permissions of a file, and special bits.
bits() {
	b=
	case $1 in ?[1357]??) b=,u+x ;; esac
	case $1 in ??[1357]?) b=$b,g+x ;; esac
	case $1 in ???[1357]) b=$b,o+x ;; esac
	special "$1" "$2"
}

# special MODE PATH: adds special bits, and those in b.
special() {
	case $1 in [4567]???) b=$b,u+s ;; esac
	case $1 in [2367]???) b=$b,g+s ;; esac
	case $1 in [1357]???) b=$b,+t ;; esac
	[ -z "$b" ] || q chmod "${b#,}" -- "$2"
}

# give OWNER MODE PATH: gives something new away, then its permissions.
give() { q chown -h "$1" -- "$3" && q chmod "$2" -- "$3"; }

# mkd MASK MODE OWNER PATH: makes a directory.
mkd() {
	umask "$1"
	q mkdir -- "$4"
	s=$?
	umask 077
	[ $s = 0 ] || return
	b=
	if [ -n "$3" ]; then give "$3" "$2" "$4"; else special "$2" "$4"; fi
}

# mkn MASK MODE OWNER PATH, mkn MASK MODE OWNER PATH TYPE NUMBERS: makes a FIFO or a device.
mkn() {
	m=$2
	w=$3
	p=$4
	umask "$1"
	shift 4
	if [ $# = 0 ]; then q mkfifo -- "$p"; else q mknod -- "$p" "$@"; fi
	s=$?
	umask 077
	[ $s = 0 ] || return
	if [ -n "$w" ]; then
		give "$w" "$m" "$p"
	elif [ $# = 0 ]; then
		bits "$m" "$p"
	else
		# Not every mknod heeds the umask.
		q chmod "$m" -- "$p"
	fi
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
	if perl -e 1 2>/dev/null; then
		perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0) && bind(S, sockaddr_un($ARGV[0])) or die ": $!\n"' -- "$t" || exit 1
	elif python3 -c '' 2>/dev/null; then
		python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$t" || exit 1
	else
		echo ': Operation not supported'
		exit 1
	fi
	mv_ "$t" "./$1"
)

# new MASK MODE OWNER PATH PARENT: creates an empty file that was not there.
new() {
	if x "$4"; then a "$EXISTS"; return; fi
	made=
	umask "$1"
	set -C
	{ made=1; } 8>"$4"
	set +C
	umask 077
	if [ -z "$made" ]; then
		if x "$4"; then a "$EXISTS"; return; fi
		# A shell's own words for a failed redirection differ; touch's do not.
		q touch -- "$4" || return
	fi
	if [ -n "$3" ]; then
		give "$3" "$2" "$4" || return
	else
		case $2 in
		?[0145]??) q chmod "$2" -- "$4" || return ;;
		*) bits "$2" "$4" || return ;;
		esac
	fi
	v "$4" "$5"
}

# noreplace FROM TO FROMDIR TODIR: renames, unless something has the name already. In one step with
# GNU's mv, which says what it renamed, and with a hard link; else with a moment between.
noreplace() {
	if x "$2"; then a "$EXISTS"; return; fi
	if [ "$MV" = -fT ]; then
		e=$(mv -nTv -- "$1" "$2" 2>&1)
		s=$?
		case $e in
		'renamed '*) ;;
		*)
			if x "$2" && x "$1"; then a "$EXISTS"; return; fi
			[ $s != 0 ] || s=1
			printf '%s\n' "$e"
			a $s
			return
			;;
		esac
	elif [ -f "$1" ] && ! [ -h "$1" ] && e=$(ln_ "$1" "$2" 2>&1 </dev/null); then
		q rm -f -- "$1" || return
	elif x "$2"; then
		a "$EXISTS"
		return
	else
		q mv_ "$1" "$2" || return
	fi
	v "$2" "$3" "$4"
}
