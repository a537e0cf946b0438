#![cfg(test)]
//! Rules that the compiler does not check: layers, documents, style.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use scpfs_testing::capability;
use scpfs_testing::capability::Capability;

/// Each part of the program and the parts that it may name.
const LAYERS: &[(&str, &[&str])] = &[
    ("path", &[]),
    ("owned_path", &[]),
    ("stat", &[]),
    ("clock", &["stat"]),
    ("sync", &[]),
    ("host_key", &[]),
    ("workers", &["sync"]),
    ("process", &[]),
    ("error_chain", &[]),
    ("exit_code", &[]),
    ("scp", BOTTOM),
    (
        "ssh",
        &["path", "stat", "clock", "sync", "host_key", "process"],
    ),
    (
        "remote",
        &[
            "path",
            "stat",
            "clock",
            "sync",
            "error_chain",
            "scp",
            "ssh",
            "shell",
        ],
    ),
    (
        "pool",
        &[
            "path",
            "stat",
            "clock",
            "sync",
            "error_chain",
            "ssh",
            "remote",
        ],
    ),
    ("shell", DIALECT),
    ("scp_only", DIALECT),
    (
        "host",
        &["clock", "error_chain", "ssh", "remote", "shell", "scp_only"],
    ),
    (
        "cache",
        &[
            "path",
            "owned_path",
            "stat",
            "clock",
            "sync",
            "workers",
            "host_key",
            "error_chain",
            "remote",
        ],
    ),
    (
        "vfs",
        &[
            "path",
            "stat",
            "clock",
            "sync",
            "error_chain",
            "remote",
            "cache",
        ],
    ),
    (
        "fuse",
        &["stat", "workers", "error_chain", "remote", "cache", "vfs"],
    ),
    ("config", &["ssh", "cache", "vfs"]),
    (
        "control",
        &["path", "owned_path", "stat", "remote", "cache", "config"],
    ),
    (
        "cli",
        &["path", "host_key", "config", "process", "ssh", "vfs"],
    ),
    (
        "mount",
        &[
            "path",
            "clock",
            "sync",
            "workers",
            "host_key",
            "process",
            "error_chain",
            "exit_code",
            "ssh",
            "remote",
            "host",
            "cache",
            "vfs",
            "fuse",
            "config",
            "control",
        ],
    ),
    (
        "commands",
        &[
            "path",
            "clock",
            "error_chain",
            "exit_code",
            "remote",
            "cache",
            "config",
            "control",
            "mount",
        ],
    ),
];

const DIALECT: &[&str] = &[
    "path",
    "stat",
    "clock",
    "sync",
    "error_chain",
    "scp",
    "ssh",
    "remote",
    "pool",
];

const BOTTOM: &[&str] = &["path", "stat", "clock", "sync", "workers", "host_key"];

/// Crates that only some parts may name.
const CRATES: &[(&str, &[&str])] = &[
    ("fuser", &["fuse", "mount"]),
    ("ssh2", &["ssh"]),
    ("libssh2_sys", &["ssh"]),
    ("ssh2_config", &["ssh"]),
    ("lru", &["cache", "shell", "scp_only", "vfs"]),
    ("env_logger", &["mount"]),
    ("lexopt", &["cli"]),
    ("etcetera", &["cli"]),
    ("rpassword", &["mount"]),
    ("serde", &["control", "commands"]),
    ("serde_json", &["control", "commands"]),
    ("nix", &["mount", "control", "cli"]),
    ("libc", &["vfs", "cache", "fuse", "mount"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_str().unwrap().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The part of the program that a file belongs to.
fn part(file: &Path) -> String {
    let inside = file.strip_prefix(root().join("src")).unwrap();
    let first = inside.iter().next().unwrap().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The code of a file before its tests, without comments.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines()
        .map(|line| line.split("//").next().unwrap())
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn no_part_names_one_above_it() {
    for file in files(&root().join("src"), ".rs") {
        let part = part(&file);
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == part) else {
            assert!(
                ["lib", "main"].contains(&part.as_str()),
                "unknown part {part}"
            );
            continue;
        };
        for (at, _) in code(&file).match_indices("crate::") {
            let code = code(&file);
            let named: String = code[at + 7..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            assert!(
                named == part || allowed.contains(&named.as_str()) || named.is_empty(),
                "{} names {named}",
                file.display()
            );
        }
    }
}

#[test]
fn crates_stay_in_their_layer() {
    for file in files(&root().join("src"), ".rs") {
        let (part, code) = (part(&file), code(&file));
        for (name, allowed) in CRATES {
            let is_named = code.match_indices(&format!("{name}::")).any(|(at, _)| {
                let before = code[..at].chars().next_back().unwrap_or(' ');
                !(before.is_ascii_alphanumeric() || before == '_' || before == ':')
            });
            assert!(
                !is_named || allowed.contains(&part.as_str()),
                "{} names {name}",
                file.display()
            );
        }
    }
}

#[test]
fn every_module_says_what_it_is_and_is_ascii() {
    for file in files(&root().join("src"), ".rs")
        .iter()
        .chain(&files(&root().join("tests"), ".rs"))
    {
        let text = fs::read_to_string(file).unwrap();
        let head = text.lines().find(|line| !line.starts_with("#!")).unwrap();
        assert!(head.starts_with("//! "), "{}: {head}", file.display());
        assert!(text.is_ascii(), "{} is not ASCII", file.display());
    }
}

/// A reader who is new to the code finds the file of a behaviour by this list.
#[test]
fn every_module_with_submodules_lists_them_in_its_head() {
    let rooms = files(&root().join("src"), ".rs")
        .into_iter()
        .filter(|file| {
            file.iter().count() == root().iter().count() + 2 && !file.ends_with("main.rs")
        });
    let tests = files(&root().join("tests"), "main.rs");
    for file in rooms
        .chain(tests)
        .chain([root().join("tests/common/lib.rs")])
    {
        let text = fs::read_to_string(&file).unwrap();
        let head: Vec<_> = text.lines().filter(|it| it.starts_with("//!")).collect();
        for line in text.lines() {
            let Some(name) = line.strip_suffix(';').and_then(|it| it.split_once("mod ")) else {
                continue;
            };
            if !(name.0.is_empty() || name.0.starts_with("pub")) {
                continue;
            }
            let is_listed = [
                format!("//! - `{}`: ", name.1),
                format!("//! - [`{}`]: ", name.1),
            ];
            let is_listed = head
                .iter()
                .any(|it| is_listed.iter().any(|start| it.starts_with(start)));
            assert!(is_listed, "{} says nothing of {}", file.display(), name.1);
        }
    }
}

#[test]
fn the_readme_shows_the_options_as_the_help_does() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for text in [scpfs::cli::command_text(), scpfs::cli::option_text()] {
        assert!(readme.contains(text.trim()), "README.md wants:\n{text}");
    }
}

/// Parts of docs/semantics.md whose sections make no promises.
const WITHOUT_PROMISES: &[&str] = &["errno", "Limits"];

/// The tests that a section of docs/semantics.md lists below `Tests:`.
fn listed_tests(section: &str) -> Vec<&str> {
    let Some((_, list)) = section.split_once("\nTests:\n\n") else {
        return Vec::new();
    };
    let names = list.lines().map_while(|line| line.strip_prefix("- `"));
    names.map(|name| name.trim_end_matches('`')).collect()
}

/// Whether a word between backticks is the name of a test: at least four words, joined by
/// underscores.
fn is_name_of_test(word: &str) -> bool {
    word.matches('_').count() >= 3
        && word
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[test]
fn every_promise_of_the_semantics_names_a_test_that_exists() {
    let text = fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    let tests: String = files(&root().join("tests"), ".rs")
        .iter()
        .chain(&files(&root().join("src"), ".rs"))
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let mut n_promises = 0;
    for part in text.split("\n## ").skip(1) {
        let title = part.lines().next().unwrap();
        if WITHOUT_PROMISES.contains(&title) {
            continue;
        }
        let mut sections: Vec<_> = part.split("\n### ").collect();
        if sections.len() > 1 {
            sections.remove(0);
        }
        for section in sections {
            let heading = section.lines().next().unwrap();
            let is_checked = !listed_tests(section).is_empty();
            assert!(is_checked, "docs/semantics.md: no test of: {heading}");
            n_promises += 1;
        }
    }
    assert!(n_promises > 95, "only {n_promises} promises are found");
    // The text may name tests as well, outside the lists.
    let listed = text.split("\n### ").flat_map(listed_tests);
    let words = text.split('`').skip(1).step_by(2);
    let mut n_named = 0;
    for name in listed.chain(words.filter(|word| is_name_of_test(word))) {
        let is_there =
            tests.contains(&format!("fn {name}(")) || tests.contains(&format!("    {name}\n"));
        assert!(
            is_there,
            "docs/semantics.md names a test that does not exist: {name}"
        );
        n_named += 1;
    }
    assert!(n_named > 500, "only {n_named} names of tests are found");
}

#[test]
fn the_semantics_are_wrapped() {
    let text = fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    for (line, n) in text.lines().zip(1..) {
        assert!(line.chars().count() <= 100, "docs/semantics.md:{n}: {line}");
    }
}

#[test]
fn ci_requires_every_capability() {
    let words: Vec<_> = Capability::ALL.iter().map(|it| it.word()).collect();
    let required = format!("SCPFS_REQUIRE={}", words.join(","));
    for script in [".ci/run", "scripts/test"] {
        let text = fs::read_to_string(root().join(script)).unwrap();
        let is_named = text.split_whitespace().any(|word| word == required);
        assert!(is_named, "{script} wants: {required}");
    }
}

#[test]
fn a_capability_is_required_by_its_whole_word() {
    let (all, part) = ("scp, dropbear-scp,", "dropbear-scp");
    assert!(capability::names(all, Capability::Scp));
    assert!(!capability::names(part, Capability::Scp));
    assert!(!capability::names(part, Capability::Dropbear));
    assert!(!capability::names("", Capability::Fuse));
    let unknown = std::panic::catch_unwind(|| capability::names("scp,built", Capability::Scp));
    assert!(unknown.is_err(), "a word that no test knows");
}

/// `SCPFS_REQUIRE` has no effect on a test that is skipped in another way.
#[test]
fn one_function_skips_tests() {
    let said: Vec<_> = files(&root().join("tests"), ".rs")
        .into_iter()
        .chain(files(&root().join("src"), ".rs"))
        .filter(|file| {
            fs::read_to_string(file)
                .unwrap()
                .contains(concat!("SKIP", "PED"))
        })
        .collect();
    assert_eq!(said, [root().join("tests/common/capability.rs")]);
}

/// A file that several test binaries include is compiled for each of them, with its warnings.
#[test]
fn tests_share_code_through_the_support_crate() {
    for file in files(&root().join("tests"), ".rs") {
        let text = fs::read_to_string(&file).unwrap();
        let includes = text.contains(concat!("#[pa", "th = "));
        assert!(!includes, "{} includes another file", file.display());
    }
}

#[test]
fn documents_name_files_that_exist() {
    for document in [
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/semantics.md",
    ] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for name in text.split('`').skip(1).step_by(2) {
            let is_path = ["src/", "tests/", "scripts/", "docs/"]
                .iter()
                .any(|p| name.starts_with(p));
            if is_path && !name.contains(char::is_whitespace) && !name.contains('*') {
                assert!(root().join(name).exists(), "{document} names {name}");
            }
        }
    }
}

/// Openings of comments that leave out the subject.
const UNCLEAR_OPENINGS: &[&str] = &["Who ", "What ", "Whoever "];

/// A paraphrase of "unknown outcome", see docs/glossary.md.
const UNCLEAR_PHRASE: &str = concat!("nobody", " heard");

/// The text of a comment line; `None` if the line is no comment.
fn comment<'a>(file: &Path, line: &'a str) -> Option<&'a str> {
    let line = line.trim_start();
    let text = if file.extension()? == "rs" {
        let text = line.strip_prefix("//")?;
        text.strip_prefix(['/', '!']).unwrap_or(text)
    } else {
        line.strip_prefix('#')?
    };
    Some(text.trim_start())
}

#[test]
fn comments_begin_with_their_subject() {
    let mut unclear = Vec::new();
    for (dir, ending) in [("src", ".rs"), ("src", ".sh"), ("tests", ".rs")] {
        for file in files(&root().join(dir), ending) {
            let text = fs::read_to_string(&file).unwrap();
            for (line, n) in text.lines().zip(1..) {
                let Some(comment) = comment(&file, line) else {
                    continue;
                };
                let hides_subject = UNCLEAR_OPENINGS.iter().any(|it| comment.starts_with(it));
                if hides_subject || comment.contains(UNCLEAR_PHRASE) {
                    let file = file.strip_prefix(root()).unwrap().display();
                    unclear.push(format!("{file}:{n}: {comment}"));
                }
            }
        }
    }
    let n_unclear = unclear.len();
    assert!(
        unclear.is_empty(),
        "{n_unclear} comments that say who, what or whoever instead of the subject, see \
         docs/glossary.md:\n{}",
        unclear.join("\n")
    );
}

/// The longest line of a document, outside tables and code.
const MAX_LINE: usize = 160;

#[test]
fn documents_are_wrapped() {
    let mut documents = files(&root().join("docs"), ".md");
    documents
        .extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name)));
    let mut long = Vec::new();
    for file in documents {
        let text = fs::read_to_string(&file).unwrap();
        let mut is_code = false;
        for (line, n) in text.lines().zip(1..) {
            let is_fence = line.trim_start().starts_with("```");
            is_code ^= is_fence;
            let is_table = line.starts_with('|');
            let n_chars = line.chars().count();
            if !is_code && !is_table && n_chars > MAX_LINE {
                let file = file.strip_prefix(root()).unwrap().display();
                long.push(format!("{file}:{n}: {n_chars} characters"));
            }
        }
    }
    let n_long = long.len();
    assert!(
        long.is_empty(),
        "{n_long} lines of more than {MAX_LINE} characters:\n{}",
        long.join("\n")
    );
}
