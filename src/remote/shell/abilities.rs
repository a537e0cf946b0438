//! What can be done with the tools of a host.

use crate::remote::Facts;
use crate::remote::TimePrecision;
use crate::remote::ability;
use crate::remote::ability::Ability;
use crate::remote::ability::Extent;
use crate::remote::ability::Operation;

pub(super) fn abilities(facts: &Facts) -> Vec<Ability> {
    ability::all(|what| match what {
        Operation::Exchange if !facts.can_exchange => {
            Extent::Impossible("the host's mv has no --exchange")
        }
        Operation::Times if facts.time_precision == TimePrecision::Seconds => {
            Extent::Limited("whole seconds, where a program asks for more than microseconds")
        }
        Operation::Owner if facts.uid != 0 => Extent::Limited("the login user is not root"),
        Operation::Socket => Extent::Limited("where the host has perl or python3"),
        Operation::Flush => Extent::Limited("where the host has `sync FILE` or `fsync`"),
        Operation::Pieces if !facts.can_take_pieces => {
            Extent::Impossible("the host's dd cannot count bytes; one connection does it")
        }
        _ => Extent::Full,
    })
}
