//! Large directories.

use std::fs;

use scpfs_testing::or_skip;

use crate::Mounted;

#[test]
fn a_directory_of_twenty_thousand_files_is_listed_and_used() {
    let mounted = or_skip!(Mounted::new(&[]));
    fs::create_dir(mounted.there("many")).unwrap();
    for n in 0..20_000 {
        fs::write(mounted.there(&format!("many/file {n}")), "").unwrap();
    }
    mounted.sh(r#"
        test "$(ls many | wc -l)" = 20000
        test "$(ls -l many | wc -l)" = 20001
        test "$(find many -type f -empty | wc -l)" = 20000
        cat 'many/file 777'; test ! -e many/none
        chmod 777 "$THERE/many"
        rm 'many/file 1' 'many/file 2'; test "$(ls many | wc -l)" = 19998
        "#);
}

#[test]
fn a_hundred_thousand_known_names_take_little_memory() {
    let mounted = or_skip!(Mounted::new(&["-o", "cache_timeout=600"]));
    for dir in 0..20 {
        fs::create_dir(mounted.there(&format!("d{dir}"))).unwrap();
        for n in 0..5000 {
            fs::write(
                mounted.there(&format!("d{dir}/a name of a usual length {n}")),
                "",
            )
            .unwrap();
        }
    }
    assert_eq!(
        mounted.sh("find . -type f -printf '%s\\n' | wc -l").trim(),
        "100000"
    );
    assert_eq!(mounted.sh("ls -lR . | grep -c usual").trim(), "100000");
    let peak = mounted.peak_memory();
    assert!(peak < 150 << 20, "{peak} bytes");
}
