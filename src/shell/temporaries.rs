//! The names of temporary files, for as long as an answer of the host may contain them.

use crate::path::Name;
use crate::path::RemotePath;
use crate::sync::Mutex;

/// Names of temporary files, which listings and stats hide.
///
/// The host reads a directory some time before its answer arrives, and the upload may end in
/// between. So a name is known until all requests that began before the end of its upload are
/// answered.
#[derive(Debug, Default)]
pub(super) struct Temporaries(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Counts begins of requests and ends of uploads.
    now: u64,
    /// When the requests in flight began.
    open_requests: Vec<u64>,
    names: Vec<Temporary>,
}

#[derive(Debug)]
struct Temporary {
    dir: RemotePath,
    name: Name,
    /// When its upload ended; `None` while it is in progress.
    ended: Option<u64>,
}

impl Temporaries {
    /// Adds the name of the temporary file of a new upload.
    pub(super) fn begin(&self, dir: &RemotePath, name: &Name) {
        self.0.lock().names.push(Temporary {
            dir: dir.clone(),
            name: name.clone(),
            ended: None,
        });
    }

    /// Marks the upload of a name as ended. The name is removed when no request in flight can show
    /// it.
    pub(super) fn end(&self, name: &Name) {
        let mut state = self.0.lock();
        let now = state.tick();
        for temporary in &mut state.names {
            if temporary.name == *name {
                temporary.ended = Some(now);
            }
        }
        state.drop_unneeded();
    }

    /// Begins a request whose answer may contain names of temporary files.
    pub(super) fn begin_request(&self) -> OpenRequest<'_> {
        let mut state = self.0.lock();
        let began = state.tick();
        state.open_requests.push(began);
        OpenRequest {
            temporaries: self,
            began,
        }
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn drop_unneeded(&mut self) {
        let oldest = self.open_requests.iter().copied().min();
        self.names
            .retain(|temporary| match (temporary.ended, oldest) {
                (Some(ended), Some(oldest)) => ended > oldest,
                (Some(_), None) => false,
                (None, _) => true,
            });
    }
}

/// A request, from before it is sent until its answer was filtered.
#[derive(Debug)]
pub(super) struct OpenRequest<'a> {
    temporaries: &'a Temporaries,
    began: u64,
}

impl OpenRequest<'_> {
    /// Returns the names in `dir` that were temporary files at any moment since the request began.
    pub(super) fn hidden_in(&self, dir: &RemotePath) -> Vec<Name> {
        let state = self.temporaries.0.lock();
        let names = state.names.iter().filter(|it| it.dir == *dir);
        names.map(|it| it.name.clone()).collect()
    }

    /// Returns whether `path` was a temporary file at any moment since the request began.
    pub(super) fn hides(&self, path: &RemotePath) -> bool {
        let Some(name) = path.name() else {
            return false;
        };
        self.hidden_in(&path.parent().unwrap_or_default())
            .contains(&name)
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        let mut state = self.temporaries.0.lock();
        let began = self.began;
        state.open_requests.retain(|&request| request != began);
        state.drop_unneeded();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_hidden_from_requests_that_began_before_its_upload_ended() {
        let temporaries = Temporaries::default();
        let dir = RemotePath::root();
        let [first, second] = [b"first", b"other"].map(|name| Name::new(name).unwrap());
        temporaries.begin(&dir, &first);
        let early = temporaries.begin_request();
        temporaries.end(&first);
        let late = temporaries.begin_request();
        temporaries.begin(&dir, &second);
        temporaries.end(&second);
        assert_eq!(early.hidden_in(&dir), [first.clone(), second.clone()]);
        let path = dir.join(&first);
        assert!(early.hides(&path) && !early.hides(&dir) && !early.hides(&path.join(&first)));
        drop(early);
        // No request in flight can show the first name.
        assert_eq!(late.hidden_in(&dir), [second]);
        drop(late);
        let state = temporaries.0.lock();
        assert!(state.names.is_empty() && state.open_requests.is_empty());
    }
}
