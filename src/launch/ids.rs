//! The ids of the processes that set a sandbox up, and the texts of their maps.

use crate::host::Host;
use crate::plan::Identities;
use crate::spec::ids::{Extent, maps};

/// User and group inside of the caller; the overflow id where the map does not hold it.
pub(super) fn caller(who: &Identities, host: &Host) -> (u32, u32) {
    (inner(&who.uids, host.uid), inner(&who.gids, host.gid))
}

/// User and group inside of the process that makes the root. A caller that the map does not hold, as real root is,
/// has to become somebody: an id without a mapping can make neither a namespace nor a file.
pub(super) fn creator(who: &Identities, host: &Host) -> (u32, u32) {
    let held = |extents: &[Extent], outer: u32| {
        let first = extents.first().map_or(0, |e| e.inner);
        let otherwise = if maps(extents, 0) { 0 } else { first };
        let mapped = extents.iter().any(|e| outer >= e.outer && outer - e.outer < e.count);
        if mapped { inner(extents, outer) } else { otherwise }
    };
    (held(&who.uids, host.uid), held(&who.gids, host.gid))
}

/// What an id outside is inside; the overflow id where it is nothing.
pub(super) fn inner(extents: &[Extent], outer: u32) -> u32 {
    const OVERFLOW: u32 = 65534;
    let of = extents.iter().find(|e| outer >= e.outer && outer - e.outer < e.count);
    of.map_or(OVERFLOW, |e| e.inner + (outer - e.outer))
}

/// The text of a map.
pub(super) fn lines(extents: &[Extent]) -> String {
    extents.iter().map(|e| format!("{} {} {}\n", e.inner, e.outer, e.count)).collect()
}

/// The map of a namespace below one that has these extents: every id stands for itself, one line for each
/// extent, since a line may not span two of the parent's (network.md T7).
pub(super) fn identity_map(extents: &[Extent]) -> String {
    extents.iter().map(|e| format!("{} {} {}\n", e.inner, e.inner, e.count)).collect()
}
