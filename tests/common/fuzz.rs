//! Mutates captured inputs and feeds them to a function that must neither panic nor hang.
#![allow(
    clippy::disallowed_methods,
    reason = "how long an input takes is measured"
)]

use std::fs;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use crate::random::Random;

/// The longest time that one input may take, in a debug build on a busy machine.
const MAX_TIME: Duration = Duration::from_secs(30);

/// The longest input. All limits of the parsers are below it.
const MAX_INPUT: usize = 64 << 10;

/// Numbers at which a type or a limit may overflow.
const NUMBERS: &[&[u8]] = &[
    b"0",
    b"-1",
    b"+1",
    b"255",
    b"1024",
    b"65536",
    b"2147483647",
    b"2147483648",
    b"4294967295",
    b"4294967296",
    b"9223372036854775807",
    b"9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551616",
    b"99999999999999999999999999",
    b"1e9",
    b"0x7f",
    b"07777",
    b"-9223372036854775808.999999999",
];

/// Bytes that have a meaning for one of the parsers.
const BYTES: &[u8] = b"\0\x01\x02\x1b\x1d\x1e\x7f\x80\xff\n\r\t .,:;/\\-+|%@#*?![]\"'CDET";

fn corpus_dir(target: &str) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut dirs = package.ancestors().map(|dir| dir.join("fuzz/corpus"));
    let corpus = dirs.find(|dir| dir.exists()).unwrap();
    corpus.join(target)
}

fn number_from(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs the inputs in the corpus of a target, then mutations of them.
pub fn run(target: &str, body: fn(&[u8])) {
    let mut files: Vec<PathBuf> = fs::read_dir(corpus_dir(target))
        .unwrap()
        .map(|item| item.unwrap().path())
        .collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(!corpus.is_empty(), "no corpus for {target}");
    for input in &corpus {
        try_one(target, body, input);
    }
    let seed = number_from("FUZZ_SEED").unwrap_or_else(|| getrandom::u64().unwrap());
    let limit = Duration::from_secs(number_from("FUZZ_SECONDS").unwrap_or(2));
    let mut random = Random::new(seed);
    let (since, mut n_inputs) = (Instant::now(), corpus.len());
    while since.elapsed() < limit {
        let input = mutated(&corpus, &mut random);
        try_one(target, body, &input);
        n_inputs += 1;
    }
    println!("{target}: {n_inputs} inputs, FUZZ_SEED={seed}");
}

/// Runs one input. If it fails, it is written to the corpus.
fn try_one(target: &str, body: fn(&[u8]), input: &[u8]) {
    let since = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| body(input)));
    let took = since.elapsed();
    if result.is_ok() && took < MAX_TIME {
        return;
    }
    let hash = crc32fast::hash(input);
    let file = corpus_dir(target).join(format!("broke-{hash:08x}"));
    fs::write(&file, input).unwrap();
    panic!("{target} breaks after {took:?} with {}", file.display());
}

fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = corpus[random.index(corpus.len())].clone();
    for _ in 0..=random.index(4) {
        let at = random.index(input.len() + 1);
        let end = (at + random.index(40)).min(input.len());
        match random.index(10) {
            0 if at < input.len() => input[at] ^= 1 << random.index(8),
            1 => input.truncate(at),
            2 => drop(input.drain(at..end)),
            3 => {
                let other = &corpus[random.index(corpus.len())];
                let from = random.index(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            4 => {
                let part = input[at..end].to_vec();
                let n_times = 1 << random.index(10);
                drop(input.splice(at..at, part.repeat(n_times)));
            }
            5 => {
                // Replaces the next number, if there is one.
                let is_digit = |byte: &u8| byte.is_ascii_digit();
                let start = input[at..].iter().position(is_digit).map_or(at, |n| at + n);
                let n_digits = input[start..].iter().take_while(|b| is_digit(b)).count();
                let number = NUMBERS[random.index(NUMBERS.len())];
                drop(input.splice(start..start + n_digits, number.iter().copied()));
            }
            6 if at < input.len() => input[at] = BYTES[random.index(BYTES.len())],
            7 => input.insert(at, BYTES[random.index(BYTES.len())]),
            8 if at < input.len() => input[at] = random.next_u64().to_le_bytes()[0],
            _ => {
                let other = &corpus[random.index(corpus.len())];
                let from = random.index(other.len() + 1);
                let to = (from + random.index(200)).min(other.len());
                drop(input.splice(at..end, other[from..to].iter().copied()));
            }
        }
        input.truncate(MAX_INPUT);
    }
    input
}
