//! The names of temporary files of uploads, for as long as an answer of the host may show them.

use crate::path::Name;
use crate::path::RemotePath;
use crate::sync::Mutex;

/// Names that nobody but the uploads themselves is to see.
///
/// The host reads a directory some time before its answer is here, and an upload may end in
/// between: a name stays known until every look that began before that end has its answer.
#[derive(Debug, Default)]
pub(super) struct Temporaries(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Counts the looks and ends.
    now: u64,
    /// When the looks that are not answered yet began.
    looks: Vec<u64>,
    names: Vec<Temporary>,
}

#[derive(Debug)]
struct Temporary {
    dir: RemotePath,
    name: Name,
    /// When its upload ended.
    ended: Option<u64>,
}

impl Temporaries {
    /// Adds the name of an upload that begins.
    pub(super) fn begin(&self, dir: &RemotePath, name: &Name) {
        self.0.lock().names.push(Temporary {
            dir: dir.clone(),
            name: name.clone(),
            ended: None,
        });
    }

    /// Forgets the name of an upload that has ended, once nothing can show it any more.
    pub(super) fn end(&self, name: &Name) {
        let mut state = self.0.lock();
        let now = state.tick();
        for temporary in &mut state.names {
            if temporary.name == *name {
                temporary.ended = Some(now);
            }
        }
        state.forget();
    }

    /// Begins a look at the host that may show names.
    pub(super) fn look(&self) -> Look<'_> {
        let mut state = self.0.lock();
        let began = state.tick();
        state.looks.push(began);
        Look {
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

    fn forget(&mut self) {
        let oldest = self.looks.iter().copied().min();
        self.names
            .retain(|temporary| match (temporary.ended, oldest) {
                (Some(ended), Some(oldest)) => ended > oldest,
                (Some(_), None) => false,
                (None, _) => true,
            });
    }
}

/// A look at the host, from before its request is sent until its answer was filtered.
#[derive(Debug)]
pub(super) struct Look<'a> {
    temporaries: &'a Temporaries,
    began: u64,
}

impl Look<'_> {
    /// Returns the names in `dir` that were those of uploads at any moment since the look began.
    pub(super) fn hidden_in(&self, dir: &RemotePath) -> Vec<Name> {
        let state = self.temporaries.0.lock();
        let names = state.names.iter().filter(|it| it.dir == *dir);
        names.map(|it| it.name.clone()).collect()
    }

    /// Whether `path` was that of an upload at any moment since the look began.
    pub(super) fn hides(&self, path: &RemotePath) -> bool {
        let Some(name) = path.name() else {
            return false;
        };
        self.hidden_in(&path.parent().unwrap_or_default())
            .contains(&name)
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        let mut state = self.temporaries.0.lock();
        let began = self.began;
        state.looks.retain(|&look| look != began);
        state.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_hidden_from_each_look_that_began_before_its_upload_ended() {
        let temporaries = Temporaries::default();
        let dir = RemotePath::root();
        let [first, second] = [b"first", b"other"].map(|name| Name::new(name).unwrap());
        temporaries.begin(&dir, &first);
        let early = temporaries.look();
        temporaries.end(&first);
        let late = temporaries.look();
        temporaries.begin(&dir, &second);
        temporaries.end(&second);
        assert_eq!(early.hidden_in(&dir), [first.clone(), second.clone()]);
        let path = dir.join(&first);
        assert!(early.hides(&path) && !early.hides(&dir) && !early.hides(&path.join(&first)));
        drop(early);
        // Nobody who still looks can see the first.
        assert_eq!(late.hidden_in(&dir), [second]);
        drop(late);
        let state = temporaries.0.lock();
        assert!(state.names.is_empty() && state.looks.is_empty());
    }
}
