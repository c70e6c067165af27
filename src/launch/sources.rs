//! The part of `prepare` about what is mounted: sources on the host, overlays and the user's mounts as operations.

use super::mounts::PLAIN;
use super::prepare::{Context, c_text, target};
use super::script::{IdMapped, Naming, Op, OverlayOp, Script, Src, UpperDirs};
use crate::error::{Error, Result};
use crate::host::files::c_path;
use crate::host::{Host, Power};
use crate::plan::{Layers, UpperAt};
use crate::spec::Overlay;
use crate::spec::mount::{Access, Devices, Exec, Mount, Source};
use crate::state::Layer;
use crate::sys::mount::{Attr, Depth};
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

impl Context<'_> {
    /// A source that is only read: as real root it is shown through the sandbox's own ids.
    pub(super) fn source(&mut self, path: &Path, depth: Depth, attr: Attr) -> Result<Src> {
        let path = self.outside(path);
        if self.host.power != Power::Root {
            return Ok(Src::Path(path));
        }
        self.idmapped.push(IdMapped { path, depth, attr: attr | Attr::RDONLY });
        if self.idmapped.len() > MAX_TREES {
            let why = format!("as root sbx shows at most {MAX_TREES} directories of the host");
            return Err(Error::spec("--volume", "too many", why).or_try("run sbx as an ordinary user"));
        }
        Ok(Src::Tree(self.idmapped.len() - 1, self.fresh("lower")?))
    }

    /// A path of the host as the child takes it. Where the store has to lie on `/`, `..` may lead into it, so such
    /// kernels get paths without links and `..`.
    pub(super) fn outside(&self, path: &Path) -> CString {
        match detached(self.host, &self.lower) {
            true => c_path(path),
            false => c_path(&std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())),
        }
    }

    fn naming(&self) -> Naming {
        match self.host.kernel {
            kernel if kernel >= (6, 13) => Naming::Descriptor,
            kernel if kernel >= (6, 5) => Naming::Paths,
            _ => Naming::OneOption,
        }
    }

    pub(super) fn root_overlay(&mut self, layers: &Layers) -> Result<OverlayOp> {
        let (upper, volatile) = match &layers.upper {
            UpperAt::Store => (UpperDirs::Store(c_text("upper")?, c_text("work")?), false),
            UpperAt::Dropped(at) => (UpperDirs::Host(self.outside(at.as_path())), true),
            UpperAt::Kept(at) => (UpperDirs::Host(self.outside(at.as_path())), false),
        };
        if self.root_lower.is_empty() {
            let paths: Vec<&Path> = layers.lower.iter().map(|layer| layer.as_path()).collect();
            self.root_lower = paths.into_iter().map(|p| self.source(p, Depth::Single, PLAIN)).collect::<Result<_>>()?;
        }
        let lower = self.root_lower.clone();
        Ok(OverlayOp { lower, upper, naming: self.naming(), volatile, is_root: true })
    }

    /// An overlay of one directory of the host with its changes in the store.
    pub(super) fn overlay(&mut self, src: &Path) -> Result<OverlayOp> {
        let lower = vec![self.source(src, Depth::Single, PLAIN)?];
        let name = self.fresh("upper")?;
        // What is kept lies with the changes of the root.
        let upper = match self.plan.layers.as_ref().filter(|_| self.plan.others_on_disk) {
            Some(at) => {
                let name = OsStr::from_bytes(name.to_bytes());
                UpperDirs::Host(self.outside(&at.as_path().join(name)))
            }
            _ => UpperDirs::Store(name, self.fresh("work")?),
        };
        let volatile = matches!(upper, UpperDirs::Host(_));
        Ok(OverlayOp { lower, upper, naming: self.naming(), volatile, is_root: false })
    }

    pub(super) fn mount(&mut self, mount: &Mount) -> Result<Op> {
        let target = target(mount.dst.as_path())?;
        let noexec = |exec: &Exec| if *exec == Exec::Noexec { Attr::NOEXEC } else { Attr::NONE };
        Ok(match &mount.source {
            Source::Bind { src, access, exec, devices, .. } => {
                let nodev = if *devices == Devices::Nodev { Attr::NODEV } else { Attr::NONE };
                let attr = Attr::NOSUID | nodev | noexec(exec);
                match access {
                    Access::Overlay => Op::OverlayBind(self.overlay(src.as_path())?, target, attr),
                    Access::Ro => {
                        let attr = attr | Attr::RDONLY;
                        Op::Bind { src: self.source(src.as_path(), Depth::Recursive, attr)?, target, attr }
                    }
                    Access::Rw => Op::Bind { src: Src::Path(self.outside(src.as_path())), target, attr },
                }
            }
            Source::Tmpfs { size: Some(bytes), mode, exec } => Op::Tmpfs {
                size: c_text(bytes.to_string())?,
                mode: c_text(format!("{mode:o}"))?,
                target,
                attr: PLAIN | noexec(exec),
            },
            Source::Tmpfs { size: None, mode, exec } => {
                Op::Scratch { name: self.fresh("tmpfs")?, target, mode: *mode, attr: PLAIN | noexec(exec) }
            }
            Source::Mqueue => Op::Mqueue(target),
            Source::Cgroup => Op::Cgroup(target),
            Source::Device { src } => Op::Device { src: self.outside(src.as_path()), target },
        })
    }
}

/// The overlays' layers.
pub(super) fn layers(script: &Script) -> Vec<Layer> {
    let path = |text: &CString| PathBuf::from(OsStr::from_bytes(text.to_bytes()));
    let of = |overlay: &OverlayOp, at: PathBuf, fuse: bool| {
        let lower = match overlay.lower.first()? {
            Src::Path(lower) => path(lower),
            Src::Tree(index, _) => path(&script.idmapped.get(*index)?.path),
        };
        let upper = match &overlay.upper {
            UpperDirs::Store(upper, _) => path(upper),
            UpperDirs::Host(dir) => path(dir).join("upper"),
        };
        Some(Layer { at, lower, upper, fuse, below: None })
    };
    let layers = script.root.iter().filter_map(|prepared| match &prepared.op {
        Op::Overlay(overlay) => of(overlay, "/".into(), false),
        Op::Fuse(overlay) => of(overlay, "/".into(), true),
        Op::OverlayBind(overlay, target, _) => of(overlay, Path::new("/").join(path(&target.path)), false),
        _ => None,
    });
    layers.collect()
}

/// The process in between keeps the sources it is handed in an array of this length.
pub(super) const MAX_TREES: usize = 64;

/// Whether the root is built attached nowhere. Linux 6.15 mounts on detached trees and takes layers from them, but
/// not the idmapped ones of real root, which belong to the host's namespace; and what fuse-overlayfs mounts reaches
/// no detached tree.
pub(super) fn detached(host: &Host, overlays: &[Layers]) -> bool {
    let fuse = overlays.iter().any(|layers| layers.by == Overlay::Fuse);
    host.kernel >= (6, 15) && host.power != Power::Root && !fuse
}
