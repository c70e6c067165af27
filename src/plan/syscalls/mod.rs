//! Names and numbers of the system calls: one table for each architecture, and one of what they share.
//!
//! All are always compiled: the build script runs on one architecture and writes the default
//! filter for another, so nothing here may look at the host's `cfg`. What differs between the
//! architectures stands in their two tables and in [`Arch`], and nowhere else.

mod aarch64;
mod common;
mod x86;
mod x86_64;

use crate::spec::near;
use common::COMMON;

/// A name and its number.
type Call = (&'static str, u32);

const X86_64: &[Call] = &joined::<{ x86_64::OWN.len() + COMMON.len() }>(x86_64::OWN);
const X86: &[Call] = &joined::<{ x86::OWN.len() + COMMON.len() }>(x86::OWN);
const AARCH64: &[Call] = &joined::<{ aarch64::OWN.len() + COMMON.len() }>(aarch64::OWN);

/// An architecture's own calls, and after them the common ones, whose numbers are higher.
const fn joined<const N: usize>(own: &[Call]) -> [Call; N] {
    let mut all = [("", 0); N];
    let mut n = 0;
    while n < N {
        all[n] = if n < own.len() { own[n] } else { COMMON[n - own.len()] };
        n += 1;
    }
    all
}

/// An architecture that filters can be written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86, without the i386 and x32 calls the kernel may also take.
    X86_64,
    /// 64-bit Arm, without the 32-bit Arm calls.
    Aarch64,
    /// 32-bit x86 on a 64-bit kernel, as the further ABI of a filter.
    X86,
}

impl Arch {
    /// Those that sbx can be built for.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// The architecture with Rust's name `name`, as in `CARGO_CFG_TARGET_ARCH`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// The name that Go, and so Docker's profiles, have for it.
    pub fn go_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
            Self::X86 => "386",
        }
    }

    /// The value of `seccomp_data.arch`: ELF machine, 64-bit flag, little-endian flag.
    pub const fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xC000_003E,
            Self::Aarch64 => 0xC000_00B7,
            Self::X86 => 0x4000_0003,
        }
    }

    /// The first number of a second ABI that shares the audit value.
    ///
    /// x32 calls come with the audit value of x86_64 and bit 30 in the number: a filter that looks at
    /// the audit value alone lets them by.
    pub const fn second_abi(self) -> Option<u32> {
        match self {
            Self::X86_64 => Some(0x4000_0000),
            Self::Aarch64 | Self::X86 => None,
        }
    }

    /// All calls of this architecture, sorted by number.
    pub const fn table(self) -> &'static [Call] {
        match self {
            Self::X86_64 => X86_64,
            Self::Aarch64 => AARCH64,
            Self::X86 => X86,
        }
    }

    /// The number of the call `name`.
    pub fn number(self, name: &str) -> Option<u32> {
        let row = self.table().iter().find(|(known, _)| *known == name);
        row.map(|(_, number)| *number)
    }

    /// The name of the call `number`.
    pub fn name(self, number: u32) -> Option<&'static str> {
        let table = self.table();
        let row = table.binary_search_by_key(&number, |(_, number)| *number);
        row.ok().map(|row| table[row].0)
    }
}

/// Whether any architecture has a call of this name.
pub fn is_known(name: &str) -> bool {
    Arch::ALL.iter().any(|arch| arch.number(name).is_some())
}

/// The known name that looks most like `name`, if one is near enough to be meant.
pub fn nearest(name: &str) -> Option<&'static str> {
    near::nearest(name, Arch::ALL.iter().flat_map(|arch| arch.table()).map(|(known, _)| *known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_hold_each_name_once() {
        for arch in Arch::ALL.into_iter().chain([Arch::X86]) {
            let table = arch.table();
            assert!(table.windows(2).all(|pair| pair[0].1 < pair[1].1));
            for (name, number) in table {
                assert_eq!(arch.number(name), Some(*number), "{name}");
                assert_eq!(arch.name(*number), Some(*name));
            }
        }
    }

    #[test]
    fn numbers_are_the_kernels() {
        let facts = [
            (Arch::X86_64, "execve", 59),
            (Arch::X86_64, "clone3", 435),
            (Arch::X86_64, "mseal", 462),
            (Arch::X86_64, "file_setattr", 469),
            (Arch::X86, "execve", 11),
            (Arch::X86, "socketcall", 102),
            (Arch::X86, "openat2", 437),
            (Arch::Aarch64, "execve", 221),
            (Arch::Aarch64, "openat", 56),
            (Arch::Aarch64, "clone3", 435),
        ];
        for (arch, name, number) in facts {
            assert_eq!(arch.number(name), Some(number), "{name}");
        }
        assert_eq!(Arch::Aarch64.number("open"), None);
        assert_eq!(Arch::X86_64.name(400), None);
    }

    #[test]
    fn a_slip_of_the_pen_finds_the_name() {
        assert_eq!(nearest("opennat"), Some("openat"));
        assert_eq!(nearest("io_uring_steup"), Some("io_uring_setup"));
        assert_eq!(nearest("frobnicate_everything"), None);
    }
}
