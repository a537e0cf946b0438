# BusyBox without `stat`, as OpenWrt has it: `ls` tells all but the device, which the table of
# mounts tells. `ls` sorts what it prints and writes `?` for bytes of names that it does not like.
# Names as they are end with NUL, so that the other side can sort them too and put both together.
# shellcheck disable=SC2154

# mn DIR PATH...: the mounts that PATHs are on, and those below DIR: device, type, mountpoint, NUL.
mn() {
	c=${1%/}
	shift
	while read -r _ _ m _ p o; do
		for f; do
			case $p in
			# The kernel writes a space of a mountpoint as \040.
			*\\* | "$c"/*) ;;
			*) case $f/ in "${p%/}"/*) ;; *) continue ;; esac ;;
			esac
			o=${o#* - }
			printf '%s %s %s\0' "$m" "${o%% *}" "$p"
			break
		done
	done </proc/self/mountinfo
}

# st PATH...: GS, the paths, an empty one, the mounts, an empty one; what ls prints with the times of
# modification, change and access.
st() {
	e=$(ls -lnids --full-time -- "$@") || { printf '%s\n' "$e"; return 1; }
	printf '\035'
	printf '%s\0' "$@" ''
	mn // "$@"
	printf '\0%s\n' "$e"
	ls -lnidsc --full-time -- "$@"
	ls -lnidsu --full-time -- "$@"
}

# l DIR: the names in it, an empty one, the mounts, an empty one; what ls prints, three times as
# with st, each followed by GS and the word K; then what was complained of.
l() {
	if ! [ -d "$1" ] || [ -h "$1" ]; then
		printf '\0\0\035%s\035%s\035%s' "$K" "$K" "$K"
		if e=$(ls -d -- "$1" 2>&1); then e=': Not a directory'; fi
		printf '%s\n' "$e"
		a 1
		return
	fi
	e=$({
		find "$1" -mindepth 1 -maxdepth 1 -print0
		printf '\0'
		mn "$1" "$1"
		printf '\0'
		for o in '' c u; do
			ls -lnisa$o --full-time -- "${1%/}/"
			printf '\035%s' "$K"
		done
	} 2>&1 >&3)
	printf '%s' "$e"
	a 0
}

# These get what ls -lnid prints: inode, mode, links, owner, group, size, date, time, name.
look_() {
	symbolic "$2"
	printf '%s %s %s %s%s|%s %s:%s\n' "$1" "$6" "$7" "${8%.000000000}" "$i" "$m" "$4" "$5"
}
changed_() { i=" $7 ${8%.000000000}"; }
sz_() { printf '%s\n' "$6"; }

# symbolic MODE: sets m to the permissions of ls in the words of chmod.
symbolic() {
	m='' r=${1#?}
	for who in u g o; do
		t=${r%"${r#???}"}
		r=${r#???}
		m=$m${m:+,}$who=
		case $t in r??) m=${m}r ;; esac
		case $t in ?w?) m=${m}w ;; esac
		case $t in ??[xst]) m=${m}x ;; esac
		case $t in ??[sS]) m=${m}s ;; ??[tT]) m=$m,+t ;; esac
	done
}

# look FOLLOW CHANGED [TEMP] TARGET: one ls tells both, in an order of its own; the line of TEMP, which
# has no newline in it, ends with that name.
# shellcheck disable=SC2046,SC2086
look() (
	set -f
	o=$1 c=$2 i=
	shift 2
	e=$(ls -lnid$o --full-time -- "$@")
	if [ $# = 2 ]; then
		case ${e%%"$nl"*} in
		*" $1") look_ ${e%%"$nl"*}; e=${e#"${e%%"$nl"*}"} ;;
		*) look_ ${e##*"$nl"}; e=${e%"$nl"*} ;;
		esac
		shift
	fi
	[ -n "${e#"$nl"}" ] || return
	if [ -n "$c" ]; then changed_ $(ls -lnidc$o --full-time -- "$1"); fi
	look_ $e
)
# shellcheck disable=SC2046
sz() (
	set -f
	sz_ $(ls -lnidL --full-time -- "$1")
)
fs() { df -Pk -- "$1"; }

ft() { mn // "$1"; }

ln_() { portable_ln "$1" "$2"; }
