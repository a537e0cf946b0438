//! Reads values in SSH wire form (RFC 4251) from a byte slice.

#![warn(clippy::indexing_slicing)]

/// The slice ends in the middle of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Short;

/// The bytes that were not read yet.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, n_bytes: usize) -> Result<&'a [u8], Short> {
        let (taken, rest) = self.0.split_at_checked(n_bytes).ok_or(Short)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Short> {
        self.take(1)?.first().copied().ok_or(Short)
    }

    pub(super) fn number(&mut self) -> Result<u32, Short> {
        let bytes = self.take(4)?.first_chunk().ok_or(Short)?;
        Ok(u32::from_be_bytes(*bytes))
    }

    pub(super) fn long(&mut self) -> Result<u64, Short> {
        let bytes = self.take(8)?.first_chunk().ok_or(Short)?;
        Ok(u64::from_be_bytes(*bytes))
    }

    pub(super) fn string(&mut self) -> Result<&'a [u8], Short> {
        let len = usize::try_from(self.number()?).map_err(|_| Short)?;
        self.take(len)
    }

    /// Reads a string whose content is a sequence of strings.
    pub(super) fn strings(&mut self) -> Result<Vec<Vec<u8>>, Short> {
        let mut inner = Self(self.string()?);
        let mut strings = Vec::new();
        while !inner.0.is_empty() {
            strings.push(inner.string()?.to_vec());
        }
        Ok(strings)
    }
}
