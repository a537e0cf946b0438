//! Limits the holes of a file, which some hosts can only receive as zeros; pure.

/// The most bytes of holes in a file for a host that receives holes as zeros.
const MAX_HOLES: u64 = 1 << 30;

/// Returns whether a file of `size` bytes, of which `allocated` are allocated on the local disk,
/// can be uploaded. If the host cannot make holes, they may be no more than [`MAX_HOLES`].
pub(super) fn may_grow_to(can_take_holes: bool, size: u64, allocated: u64) -> bool {
    can_take_holes || size.saturating_sub(allocated) <= MAX_HOLES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_of_a_gigabyte_are_too_much_for_a_host_that_takes_none() {
        for (size, allocated, fits) in [
            (0, 0, true),
            (MAX_HOLES, 0, true),
            (MAX_HOLES + 1, 0, false),
            (16 << 40, 4096, false),
            // More blocks than bytes, as of an allocation beyond the end.
            (10, 4096, true),
            (16 << 40, (16 << 40) - 4096, true),
        ] {
            assert_eq!(may_grow_to(false, size, allocated), fits, "{size}");
            assert!(may_grow_to(true, size, allocated));
        }
    }
}
