#![cfg(test)]
//! Random operations and programs on mounts of hosts that have few programs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::Mounted;
use crate::reference::compare;
use scpfs_testing::local::Userland;
use scpfs_testing::local::World;
use scpfs_testing::or_skip;
use scpfs_testing::sshd::Options;
use scpfs_testing::sshd::Sshd;

/// Mounts a host whose logins find only these programs; the daemon's log must contain `found`.
fn with_programs(userland: Userland, found: &str, check: impl FnOnce(&Mounted)) {
    let world = World::new(userland);
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(world.root().parent().unwrap(), open).unwrap();
    let login = format!(
        "ForceCommand env PATH='{}' sh -c \"$SSH_ORIGINAL_COMMAND\"",
        world.path()
    );
    let sshd = or_skip!(Sshd::start(Options::default().line(&login)));
    let mounted = or_skip!(Mounted::on(sshd, &[]));
    assert!(mounted.log().contains(found), "{}", mounted.log());
    check(&mounted);
}

#[test]
fn operations_on_a_small_router_have_the_results_of_a_local_directory() {
    let found = "BusyBox ash, no stat, scp: listing by ls+find, 1 RTT";
    with_programs(Userland::OpenWrt, found, |mounted| {
        for seed in 201..=203 {
            compare(mounted, seed, 300);
        }
    });
}

#[test]
fn operations_on_a_host_without_scp_have_the_results_of_a_local_directory() {
    let found = "BusyBox ash, no stat, no scp: listing by ls+find, 1 RTT";
    with_programs(Userland::Bare, found, |mounted| {
        for seed in 301..=302 {
            compare(mounted, seed, 200);
        }
        let n_said = mounted.log().matches("no usable scp").count();
        assert_eq!(n_said, 1, "{}", mounted.log());
    });
}

#[test]
fn operations_on_other_userlands_have_the_results_of_a_local_directory() {
    for (userland, found) in [
        (Userland::BusyBox, "BusyBox ash, stat, scp"),
        (Userland::Toybox, "mksh, toybox tools, stat, scp"),
        (Userland::Bsd, "dash, BSD tools, stat, scp"),
        (Userland::NoScp, "dash, GNU tools, stat, no scp"),
    ] {
        if userland.is_here() {
            with_programs(userland, found, |mounted| {
                for seed in 401..=402 {
                    compare(mounted, seed, 200);
                }
            });
        }
    }
}

#[test]
fn programs_work_on_a_small_router() {
    let found = "BusyBox ash, no stat, scp: listing by ls+find, 1 RTT";
    with_programs(Userland::OpenWrt, found, |mounted| {
        mounted.put("hello", "hello\n");
        mounted.sh(r#"
            test "$(cat hello)" = hello
            ls -la | grep -q 'hello$'
            mkdir "$ASIDE/tree" "$ASIDE/tree/sub" "$ASIDE/tree/it's \$(a) sub"
            printf 'a b' > "$ASIDE/tree/sub/a b"
            head -c 3000000 /dev/urandom > "$ASIDE/tree/big"
            ln -s big "$ASIDE/tree/link"
            chmod 750 "$ASIDE/tree/sub"
            cp -r "$ASIDE/tree" tree
            diff -r "$ASIDE/tree" tree
            diff -r "$ASIDE/tree" "$THERE/tree"
            cp -r tree "$ASIDE/back"
            diff -r "$ASIDE/tree" "$ASIDE/back"
            vim -u NONE -es -c 'normal Gosaved by vim' -c wq hello
            test "$(tail -n 1 "$THERE/hello")" = 'saved by vim'
            tar -cf packed.tar tree && tar -tf packed.tar | grep -q big
            rsync -a "$ASIDE/tree/" synced/ && diff -r "$ASIDE/tree" "$THERE/synced"
            mv tree moved && rm -r moved synced packed.tar
            test "$(ls -A "$THERE" | tr '\n' ' ')" = 'hello '
            "#);
    });
}
