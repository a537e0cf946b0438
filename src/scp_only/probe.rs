//! Finds out what a server without a shell can do, when it is first reached. Refuses every entry,
//! so that no content is transferred.

use std::sync::Arc;

use crate::clock::Clock;
use crate::path::Excerpt;
use crate::path::RemotePath;
use crate::pool::OpenError;
use crate::pool::Pool;
use crate::pool::Purpose;
use crate::remote;
use crate::remote::Facts;
use crate::remote::Reason;
use crate::remote::RootError;
use crate::remote::Settings;
use crate::remote::TimePrecision;
use crate::remote::login_relative;
use crate::remote::shown_directory;
use crate::scp_only::ScpOnly;
use crate::scp_only::UNKNOWN_ID;
use crate::scp_only::attr::MAX_REUPLOAD_SIZE;
use crate::scp_only::command;
use crate::scp_only::command::Options;
use crate::scp_only::command::Quoting;
use crate::scp_only::connection::Command;
use crate::scp_only::connection::ScpConnection;
use crate::scp_only::listing;
use crate::scp_only::listing::Listed;
use crate::scp_only::quirks;
use crate::scp_only::quirks::Acks;
use crate::scp_only::quirks::Quirks;
use crate::scp_only::quirks::Refusal;
use crate::scp_only::receive;
use crate::scp_only::receive::Request;
use crate::scp_only::samples::Samples;
use crate::scp_only::trial;
use crate::scp_only::trial::Trial;
use crate::ssh;
use crate::ssh::Transport;
use crate::sync::Mutex;

const ACT: &str = "try scp";

/// The reason why a host cannot be mounted with scp alone.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Transport(#[from] ssh::Error),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error("{0}")]
    RootNotQuotable(&'static str),
    #[error(
        "the host prints something before the output of scp: `{}`; change its login scripts to \
         print nothing without a terminal",
        Excerpt(.0)
    )]
    Noise(Vec<u8>),
    #[error(
        "the host always runs the same scp command, which can only receive files; it cannot be \
         mounted"
    )]
    ReceivesOnly,
    #[error("the host did not run scp (exit status {})", status_text(.0))]
    NoScp(Option<i32>),
    #[error("the host's scp says: {}", Excerpt(.0))]
    Refused(Vec<u8>),
    #[error(transparent)]
    Remote(remote::Error),
}

fn status_text(status: &Option<i32>) -> String {
    status.map_or_else(|| "unknown".to_owned(), |status| status.to_string())
}

impl Error {
    /// Returns whether scp works and the error is about the directory.
    pub fn is_about_root(&self) -> bool {
        matches!(self, Self::Root(_) | Self::RootNotQuotable(_))
    }
}

/// Connects to a host, probes its scp and returns the dialect for it; blocks.
///
/// # Errors
/// The connection failed, the host has no usable scp, or the directory cannot be mounted.
pub fn probe(
    transport: Arc<dyn Transport>,
    settings: &Settings,
    clock: Arc<dyn Clock>,
) -> Result<ScpOnly, Error> {
    let connection = ScpConnection::open(&*transport)?;
    let banner = connection.banner().to_owned();
    let opener = move || ScpConnection::open(&*transport).map_err(OpenError::from);
    let pool = Pool::new(
        connection,
        Box::new(opener),
        settings.max_connections,
        Arc::clone(&clock),
    );
    if settings.fails_fast {
        pool.fail_fast();
    }
    let probe = Probe {
        pool: &pool,
        settings,
        directory: login_relative(&settings.directory),
    };
    let quirks = probe.find_quirks(&banner).inspect_err(|_| pool.close())?;
    let mut root = probe.directory;
    while root.len() > 1 && root.ends_with(b"/") {
        root.pop();
    }
    if quirks.options == Options::Minimal {
        // For such devices `flash:` is a directory and `./flash:` is not.
        root = root.strip_prefix(b"./").unwrap_or(&root).to_vec();
    }
    let prefix = match &root[..] {
        b"." if quirks.options == Options::Minimal => Vec::new(),
        b"/" => root.clone(),
        _ => [&root[..], b"/"].concat(),
    };
    let facts = Facts {
        summary: summary(&quirks, &banner),
        root: if root == b"/" {
            Vec::new()
        } else {
            root.clone()
        },
        uid: UNKNOWN_ID,
        gid: UNKNOWN_ID,
        groups: Vec::new(),
        can_exchange: false,
        time_precision: TimePrecision::Seconds,
        can_take_pieces: false,
        can_take_holes: false,
        sets_by_upload: Some(MAX_REUPLOAD_SIZE),
        uploads_in_place: true,
        can_fetch_many: false,
        can_list_trees: false,
        can_fetch_blocks: false,
    };
    Ok(ScpOnly {
        pool,
        facts,
        quirks: Mutex::new(quirks),
        prefix,
        root,
        max_names: settings.max_names,
        timeout: settings.timeout,
        clock,
        keeps_odd_seconds: Mutex::new(None),
        samples: Mutex::new(Samples::new()),
        unlistable: Mutex::new(Vec::new()),
    })
}

struct Probe<'a> {
    pool: &'a Pool<ScpConnection>,
    settings: &'a Settings,
    directory: Vec<u8>,
}

impl Probe<'_> {
    fn shown_directory(&self) -> Vec<u8> {
        shown_directory(&self.directory)
    }

    fn attempt(&self, line: &str) -> Result<Trial, Error> {
        let path = RemotePath::root();
        let request = Request {
            act: ACT,
            path: &path,
        };
        let timeout = self.settings.timeout;
        let trial = Command::start(self.pool, Purpose::Metadata, ACT, line, timeout)
            .and_then(|command| trial::attempt(command, request))
            .map_err(from_remote)?;
        log::debug!("`{line}`: {trial:?}");
        Ok(trial)
    }

    fn find_quirks(&self, banner: &str) -> Result<Quirks, Error> {
        let (acks, known_refusal) = quirks::by_banner(banner);
        let mut problem = None;
        let trials = command::trials(&self.directory).map_err(Error::RootNotQuotable)?;
        for (quoting, word) in trials {
            let trial = self.attempt(&format!("scp -p -r -f {word}"))?;
            if let Trial::Directory { refusal, has_times } = trial {
                let quoting = self.test_blanks(quoting, &word)?;
                let quirks = quirks_of(quoting, banner, refusal, has_times);
                return self.test_listing(quirks, known_refusal.is_none(), &word);
            }
            let found = match trial {
                Trial::File => return Err(RootError::NotADirectory(self.shown_directory()).into()),
                Trial::IsSink => return Err(Error::ReceivesOnly),
                Trial::Refused(text) => self.root_error(text)?,
                Trial::Noise(text) => Error::Noise(text),
                Trial::NoOutput(status) => Error::NoScp(status),
                // Handled above.
                Trial::Directory { .. } => continue,
            };
            // Report the first problem: servers know that form of the command best.
            let is_independent_of_quoting = !matches!(found, Error::Root(RootError::Missing(_)));
            problem.get_or_insert(found);
            if is_independent_of_quoting {
                break;
            }
        }
        let problem = problem.unwrap_or(Error::NoScp(None));
        if !problem.is_about_root()
            && let Some(quirks) = self.try_unquoted(banner)?
        {
            return Ok(quirks);
        }
        if acks == Acks::Ahead || problem.is_about_root() {
            return Err(problem);
        }
        self.try_without_options(problem)
    }

    /// Classifies a message about the root. Returns a problem if other forms of the path are worth
    /// trying.
    ///
    /// # Errors
    /// The message is conclusive.
    fn root_error(&self, text: Vec<u8>) -> Result<Error, Error> {
        match receive::reason_for(&text, Reason::NotADirectory) {
            Reason::NotFound => Ok(RootError::Missing(self.shown_directory()).into()),
            Reason::NotADirectory => Err(RootError::NotADirectory(self.shown_directory()).into()),
            Reason::AccessDenied => Err(RootError::Denied(self.shown_directory()).into()),
            _ => Ok(Error::Refused(text)),
        }
    }

    /// Finds out whether a blank ends a path on a server that takes paths literally.
    fn test_blanks(&self, quoting: Quoting, word: &str) -> Result<Quoting, Error> {
        let keeps_blanks = match quoting {
            Quoting::Literal {
                keeps_blanks: false,
            } => {
                let trial = self.attempt(&format!("scp -p -r -f {word}/. scpfs"))?;
                matches!(trial, Trial::Refused(_))
            }
            Quoting::Literal { keeps_blanks } => keeps_blanks,
            other => return Ok(other),
        };
        Ok(Quoting::Literal { keeps_blanks })
    }

    /// Lists the root if only that shows whether refused entries are skipped: a server that closes
    /// the channel at the first refusal looks like one that ends normally.
    fn test_listing(
        &self,
        mut quirks: Quirks,
        is_unknown: bool,
        word: &str,
    ) -> Result<Quirks, Error> {
        if quirks.refusal == Refusal::Unsupported || !is_unknown {
            return Ok(quirks);
        }
        let path = RemotePath::root();
        let request = Request {
            act: ACT,
            path: &path,
        };
        let line = format!("scp -p -r -f {word}");
        let timeout = self.settings.timeout;
        let listed =
            Command::start(self.pool, Purpose::Metadata, ACT, &line, timeout).and_then(|command| {
                listing::list(command, &quirks, request, b"", self.settings.max_names)
            });
        match listed {
            Ok(Listed::Whole { .. }) | Err(remote::Error::TooManyNames { .. }) => {}
            Ok(Listed::RefusalsUnsupported)
            | Err(remote::Error::Protocol { .. } | remote::Error::Refused { .. }) => {
                quirks.refusal = Refusal::Unsupported;
            }
            Err(error) => return Err(from_remote(error)),
        }
        Ok(quirks)
    }

    /// Tries a path without quotes, which a restricted shell may not allow (scponly has a list of
    /// allowed characters). Returns `None` if that does not help.
    fn try_unquoted(&self, banner: &str) -> Result<Option<Quirks>, Error> {
        let (_, known_refusal) = quirks::by_banner(banner);
        let line = command::line(
            command::Direction::FetchTree,
            Options::Full,
            Quoting::Plain,
            &self.directory,
        );
        let Ok(line) = line else {
            return Ok(None);
        };
        let Trial::Directory { refusal, has_times } = self.attempt(&line)? else {
            return Ok(None);
        };
        let quirks = quirks_of(Quoting::Plain, banner, refusal, has_times);
        let word = String::from_utf8_lossy(&self.directory);
        self.test_listing(quirks, known_refusal.is_none(), &word)
            .map(Some)
    }

    /// Tries the command without options; `problem` is the error of the attempts with options.
    fn try_without_options(&self, problem: Error) -> Result<Quirks, Error> {
        let path = self
            .directory
            .strip_prefix(b"./")
            .unwrap_or(&self.directory);
        let line = command::line(
            command::Direction::Fetch,
            Options::Minimal,
            Quoting::Plain,
            path,
        )
        .map_err(Error::RootNotQuotable)?;
        match self.attempt(&line)? {
            Trial::Refused(_) | Trial::File | Trial::Directory { .. } => Ok(Quirks {
                quoting: Quoting::Plain,
                options: Options::Minimal,
                acks: Acks::InTurn,
                refusal: Refusal::Unsupported,
                has_times: false,
            }),
            Trial::IsSink => Err(Error::ReceivesOnly),
            Trial::Noise(_) | Trial::NoOutput(_) => Err(problem),
        }
    }
}

/// Returns the quirks of a server that has announced its directory.
fn quirks_of(quoting: Quoting, banner: &str, refusal: Refusal, has_times: bool) -> Quirks {
    let (acks, known_refusal) = quirks::by_banner(banner);
    let refusal = known_refusal.map_or(refusal, |known| match known {
        Refusal::Skips => refusal,
        Refusal::Unsupported => Refusal::Unsupported,
    });
    // A server with this banner may run another scp.
    let is_as_named = refusal == Refusal::Skips && has_times;
    Quirks {
        quoting,
        options: Options::Full,
        acks: if is_as_named { acks } else { Acks::InTurn },
        refusal,
        has_times,
    }
}

fn from_remote(error: remote::Error) -> Error {
    match error {
        remote::Error::Disconnected { source, .. }
        | remote::Error::OutcomeUnknown { source, .. } => Error::Transport(source),
        error => Error::Remote(error),
    }
}

/// Returns one line for display.
fn summary(quirks: &Quirks, banner: &str) -> String {
    let listings = match (quirks.options, quirks.refusal) {
        (Options::Minimal, _) => "named files only, no options",
        (Options::Full, Refusal::Unsupported) => "named files only, no listings",
        (Options::Full, Refusal::Skips) => "with listings",
    };
    let quoting = match quirks.quoting {
        Quoting::Shell => "as a shell reads them",
        Quoting::SinglePair | Quoting::DoublePair => "in quotes",
        Quoting::Plain => "of plain characters only",
        Quoting::Literal { .. } => "as they are",
    };
    format!(
        "scp and no shell, {listings}, paths {quoting}, server {}",
        Excerpt(banner.trim().trim_start_matches("SSH-2.0-").as_bytes()),
    )
}
