//! Plan → Script: the last place that may allocate. C strings, numbers, BPF and Landlock rules are made and
//! checked here; the child only makes calls.

use super::mounts::PLAIN;
use super::script::{Above, Base, Expected, IdMapped, Op, Prepared, Script, Src, Target, attr};
use super::{ids, program, relay, ruleset, sources};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::files::c_path;
use crate::plan::limits::{Affinity, Way};
use crate::plan::{Etc, EtcWay, GroupSet, Layers, MapsBy, Masked, Need, Plan, Planned, Stage, Step, SysKind};
use crate::spec::Overlay;
use crate::spec::mount::{CGROUP, Mount, Source};
use crate::spec::text::InnerPath;
use crate::sys::cred::{CapSet, Limit};
use crate::sys::mount::{Attr, Depth};
use crate::sys::process::Namespaces;
use crate::sys::sched::CpuMask;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What the observer wants to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The program's pid as the caller sees it.
    pub pid: bool,
    /// Each step when it is done.
    pub steps: bool,
    /// All that its cgroup has counted; else only what its limits did.
    pub usage: bool,
}

/// Makes the script of a plan.
///
/// # Errors
/// `Bug` where a text that was checked before cannot be a C string.
pub(crate) fn prepare(plan: &Plan, host: &Host, told: &Told) -> Result<Script> {
    let mut script = Script {
        new: Namespaces::NONE,
        degrade: plan.degrade,
        clone_step: plan.number(|step| matches!(step, Step::Clone(_) | Step::Join(_))) as u16,
        detached: true,
        idmapped: Vec::new(),
        above: None,
        awaits_maps: plan.identities.by != MapsBy::Caller,
        creator: (0, 0),
        before: Vec::new(),
        entered: Vec::new(),
        enter: Vec::new(),
        own: Vec::new(),
        root: Vec::new(),
        identity: Vec::new(),
        confine: Vec::new(),
        ruleset: None,
        left: None,
        sysfs: false,
        host_proc: false,
        watched: plan.limits.watched().is_some(),
        followed: told.steps,
        program: program::program(plan, told.pid)?,
    };
    let mut context = Context {
        host,
        plan,
        count: 0,
        lower: Vec::new(),
        scratch: Vec::new(),
        root_lower: Vec::new(),
        idmapped: Vec::new(),
    };
    script.creator = ids::creator(&plan.identities, host);
    context.find_lower();
    script.detached = sources::detached(host, &context.lower);
    for (index, planned) in plan.steps.iter().enumerate() {
        context.step(&mut script, index as u16 + 1, planned)?;
    }
    script.idmapped = context.idmapped;
    Ok(script)
}

pub(super) fn c_text(text: impl AsRef<[u8]>) -> Result<CString> {
    CString::new(text.as_ref()).map_err(|_| Error::Bug("a NUL byte where none can be".into()))
}

/// What steps need to know of each other while they are prepared.
pub(super) struct Context<'a> {
    pub(super) host: &'a Host,
    pub(super) plan: &'a Plan,
    /// Numbers the directories and files of the store.
    count: usize,
    /// The root overlay's layers, for files that go into its upper layer.
    pub(super) lower: Vec<Layers>,
    /// Directories of the store that are mounted: where, and their name there.
    scratch: Vec<(InnerPath, String)>,
    /// The root overlay's layers as sources, made once.
    pub(super) root_lower: Vec<Src>,
    /// Sources for the parent.
    pub(super) idmapped: Vec<IdMapped>,
}

impl Context<'_> {
    fn find_lower(&mut self) {
        let layers = self.plan.steps.iter().filter_map(|p| match &p.step {
            Step::Overlay(layers) => Some(layers.clone()),
            _ => None,
        });
        self.lower = layers.collect();
    }

    /// A name in the store that nothing else has.
    pub(super) fn fresh(&mut self, kind: &str) -> Result<CString> {
        self.count += 1;
        c_text(format!("{kind}{}", self.count))
    }

    /// Puts a step's operations where they belong.
    fn step(&mut self, script: &mut Script, number: u16, planned: &Planned) -> Result<()> {
        let ops = match &planned.step {
            Step::Filter(..) if script.program.inherits_filter => inherited(script).into_iter().collect(),
            Step::Claim(_) | Step::Group(..) | Step::Scope(_) | Step::Watch(_) | Step::Join(_) => Vec::new(),
            _ if planned.stage == Stage::Exec => Vec::new(),
            Step::Clone(words) => {
                script.new = words.iter().fold(Namespaces::NONE, |all, word| all | namespace(word));
                if crate::sys::sabotaged(c"namespaces") {
                    script.new = script.new.without(Namespaces::TIME).without(Namespaces::CGROUP);
                }
                Vec::new()
            }
            Step::Maps(identities) => {
                if let (Some(pids), false) = (identities.pids_above, identities.by == MapsBy::Caller) {
                    script.above = Some(Above {
                        step: number,
                        becomes: (ids::creator(&self.plan.identities, self.host)
                            != ids::caller(&self.plan.identities, self.host))
                        .then(|| ids::creator(&self.plan.identities, self.host)),
                        pids,
                        uid_map: c_text(ids::identity_map(&identities.uids))?,
                        gid_map: c_text(ids::identity_map(&identities.gids))?,
                    });
                }
                match identities.by {
                    MapsBy::Caller => {
                        vec![Op::OwnMaps(c_text(ids::lines(&identities.uids))?, c_text(ids::lines(&identities.gids))?)]
                    }
                    MapsBy::Helpers | MapsBy::Root => Vec::new(),
                }
            }
            step => {
                self.count_entering(script, step)?;
                Self::heed(script, step);
                vec![self.op(step)?]
            }
        };
        let list = match planned.step {
            // They are inherited, and inside there may be another /proc than the kernel's.
            Step::Nice(_) | Step::OomScoreAdj(_) if self.plan.joins() => &mut script.before,
            Step::Maps(_) | Step::Session | Step::TimeOffset(_) => &mut script.enter,
            // Hiding is undone by each change of ids, after which the process may not be seen before it is hidden again.
            _ if self.plan.joins() && planned.stage == Stage::Identity && planned.step != Step::Hide => {
                &mut script.entered
            }
            _ if planned.stage == Stage::Enter => &mut script.own,
            _ if matches!(planned.stage, Stage::Root | Stage::Pivot) => &mut script.root,
            // What init loads first it loads here, beside the root: no later operation of its needs more.
            Step::Filter(..) => &mut script.identity,
            _ if planned.stage == Stage::Identity => &mut script.identity,
            _ => &mut script.confine,
        };
        list.extend(ops.into_iter().map(|op| Prepared { step: number, need: planned.need, op }));
        Ok(())
    }

    /// Who joins a sandbox makes the program's process under the limit that this will have. It is one more itself as
    /// long as it is there.
    fn count_entering(&self, script: &mut Script, step: &Step) -> Result<()> {
        if let (Step::Pids(count), true) = (step, self.plan.joins()) {
            let most = count.saturating_add(1);
            let op = Op::Rlimit(resource("nproc")?, Limit { soft: most, hard: most });
            script.before.push(Prepared { step: script.clone_step, need: Need::Must, op });
        }
        Ok(())
    }

    /// What a step asks of the script as a whole.
    fn heed(script: &mut Script, step: &Step) {
        match step {
            Step::Sysctl(..) | Step::OomScoreAdj(_) | Step::CgroupNamespace => script.host_proc = true,
            Step::Sys(SysKind::Fresh) => script.sysfs = true,
            // The network namespace is made beside the root, by unshare.
            Step::Network => script.new = script.new.without(Namespaces::NET),
            Step::TimeOffset(_) => script.new = script.new.without(Namespaces::TIME),
            _ => {}
        }
    }

    fn op(&mut self, step: &Step) -> Result<Op> {
        match step {
            Step::Session
            | Step::TimeOffset(_)
            | Step::Network
            | Step::HostName(_)
            | Step::Sysctl(..)
            | Step::OomScoreAdj(_)
            | Step::Nice(_) => enter(step),
            Step::CgroupNamespace => Ok(self.cgroup_namespace()),
            Step::Keyring
            | Step::Bounding(_)
            | Step::Groups(_)
            | Step::Ids(..)
            | Step::Capabilities(_)
            | Step::NoNewPrivs
            | Step::Hide
            | Step::Verify
            | Step::Pids(_)
            | Step::Affinity(_)
            | Step::Rlimit(_)
            | Step::Landlock(_)
            | Step::Workdir(_)
            | Step::Gate => self.confine(step),
            Step::Mount(mount) => self.mount(mount),
            Step::Conceal(..) | Step::Protect(_) => self.root(step),
            Step::Store(_)
            | Step::Overlay(_)
            | Step::BindRoot(_)
            | Step::EmptyRoot
            | Step::HostOverlay(_)
            | Step::HostBind(_)
            | Step::Link(..)
            | Step::Scratch(..)
            | Step::Supply(_)
            | Step::SealRoot(_)
            | Step::Pivot => self.root(step),
            Step::Dev
            | Step::Devpts
            | Step::HostShm
            | Step::Mqueue
            | Step::Proc
            | Step::NoUserNamespaces
            | Step::ReadOnly(_)
            | Step::Mask(_)
            | Step::Sys(_)
            | Step::CgroupMount
            | Step::Terminal
            | Step::EnterTerminal => self.kernel_fs(step),
            Step::Claim(_)
            | Step::Group(..)
            | Step::Join(_)
            | Step::Clone(_)
            | Step::Maps(_)
            | Step::Scope(_)
            | Step::Watch(_)
            | Step::Filter(..)
            | Step::Exec(_) => Err(Error::Bug(format!("{step} is no operation of the child's"))),
        }
    }

    fn root(&mut self, step: &Step) -> Result<Op> {
        Ok(match step {
            Step::Store(bytes) => Op::Store(c_text(bytes.map_or_else(|| "25%".into(), |bytes| bytes.to_string()))?),
            Step::Overlay(layers) if layers.by == Overlay::Fuse => Op::Fuse(self.root_overlay(layers)?),
            Step::Overlay(layers) => Op::Overlay(self.root_overlay(layers)?),
            Step::BindRoot(src) => Op::BindRoot(self.outside(src.as_path())),
            Step::EmptyRoot => Op::EmptyRoot,
            Step::HostOverlay(path) => Op::OverlayBind(self.overlay(path)?, target(path)?, PLAIN),
            Step::HostBind(path) => {
                let attr = PLAIN | Attr::RDONLY;
                Op::HostBind { src: self.source(path, Depth::Dormant, attr)?, target: target(path)?, attr }
            }
            Step::Link(path, to) => Op::Link(c_path(to), target(path)?),
            Step::Scratch(path, mode, exec) => {
                let name = self.fresh("scratch")?;
                self.scratch.push((path.clone(), name.to_string_lossy().into_owned()));
                Op::Scratch { name, target: target(path.as_path())?, mode: *mode, attr: attr(*exec) }
            }
            Step::Supply(etc) => self.supply(etc)?,
            Step::Conceal(path, exec) => {
                Op::Conceal { path: c_path(path.below_root()), name: self.fresh("hidden")?, attr: attr(*exec) }
            }
            Step::Protect(place) => {
                Op::Protect { path: c_path(place.path.below_root()), missing: place.missing.into() }
            }
            Step::SealRoot(overlays) => Op::SealRoot(overlays.iter().map(|path| target(path)).collect::<Result<_>>()?),
            _ => Op::Pivot,
        })
    }

    fn kernel_fs(&mut self, step: &Step) -> Result<Op> {
        let at = |path: &'static str| target(Path::new(path));
        Ok(match step {
            Step::Dev => Op::Dev(at("/dev")?),
            Step::Devpts => {
                let tty_group = crate::spec::ids::maps(&self.plan.identities.gids, 5);
                Op::Devpts { gid: if tty_group { Some(c_text("5")?) } else { None } }
            }
            Step::HostShm => Op::HostShm,
            Step::Mqueue => Op::DevMqueue,
            Step::Proc => Op::Proc(at("/proc")?),
            Step::NoUserNamespaces => Op::NoUserNamespaces,
            Step::ReadOnly(path) => Op::ReadOnly(below(path, "/proc")?),
            Step::Mask(mask) => masked(mask)?,
            Step::Sys(SysKind::Fresh) => Op::Sys(at("/sys")?),
            Step::Sys(SysKind::Empty) => Op::EmptySys { target: at("/sys")?, cgroup: self.cgroup_attr().is_some() },
            Step::CgroupMount => Op::Cgroup(at(CGROUP)?),
            Step::EnterTerminal => Op::EnterTerminal { uid: self.plan.identities.uid, size: relay::size() },
            _ => Op::Terminal { uid: self.plan.identities.uid, size: relay::size() },
        })
    }

    /// A supplied file: into the upper layer, into a directory of the store, or mounted on its entry.
    fn supply(&mut self, etc: &Etc) -> Result<Op> {
        let content = etc.content.clone().into_bytes();
        let name = etc.path.as_path().file_name().unwrap_or_default().as_bytes();
        let parent = etc.path.as_path().parent().unwrap_or(Path::new("/"));
        if let (EtcWay::Upper(mode, uid, gid), Some(layers)) = (&etc.way, self.lower.first().cloned()) {
            let dir = parent.file_name().unwrap_or_default().as_bytes();
            let who = &self.plan.identities;
            // Through an idmapped mount an owner on disk is that very id inside.
            let (uid, gid) = match who.by {
                MapsBy::Root => (uid, gid),
                _ => (&ids::inner(&who.uids, *uid), &ids::inner(&who.gids, *gid)),
            };
            let overlay = self.root_overlay(&layers)?;
            return Ok(Op::Seed {
                overlay,
                dir: c_text(dir)?,
                like: (*mode, *uid, *gid),
                file: c_text(name)?,
                content,
            });
        }
        if let Some((_, held)) = self.scratch.iter().find(|(path, _)| path.as_path() == parent) {
            let path = [held.as_bytes(), b"/", name].concat();
            return Ok(Op::Place { path: c_text(path)?, content });
        }
        Ok(Op::Supply { name: self.fresh("file")?, content, parent: target(parent)?, entry: c_text(name)? })
    }

    fn confine(&self, step: &Step) -> Result<Op> {
        let who = &self.plan.identities;
        let last = crate::spec::access::NAMES.len() as u32;
        let nproc = || resource("nproc");
        Ok(match step {
            Step::Keyring => Op::Keyring,
            Step::Bounding(held) => Op::Bounding((0..64).filter(|n| *n >= last || held.0 >> n & 1 == 0).collect()),
            Step::Groups(GroupSet::Kept(_)) => Op::Groups(None),
            Step::Groups(GroupSet::Exactly(groups)) => Op::Groups(Some(groups.clone())),
            // What the process is already, it need not become.
            Step::Ids(uid, gid) if (*uid, *gid) == self.starts_as() => Op::Ids(None),
            Step::Ids(uid, gid) => Op::Ids(Some((*uid, *gid))),
            Step::Capabilities(held) => Op::Capset(CapSet(held.0)),
            Step::NoNewPrivs => Op::NoNewPrivs,
            Step::Hide => Op::Hide,
            Step::Verify => Op::Verify(Expected {
                uid: who.uid,
                gid: who.gid,
                groups: match &who.groups {
                    GroupSet::Kept(_) => None,
                    GroupSet::Exactly(groups) => Some(groups.clone()),
                },
                held: CapSet(self.set_of(|step| matches!(step, Step::Capabilities(_)))),
                bounding: CapSet(self.set_of(|step| matches!(step, Step::Bounding(_)))),
                filtered: program::inherits_filter(self.plan),
            }),
            Step::Pids(count) => Op::Rlimit(nproc()?, Limit { soft: *count, hard: *count }),
            Step::Rlimit(limit) => Op::Rlimit(resource(&limit.name)?, Limit { soft: limit.soft, hard: limit.hard }),
            Step::Landlock(plan) => ruleset::restrict(plan),
            Step::Affinity(affinity) => Op::Affinity(Box::new(processors(affinity, self.host)?)),
            Step::Workdir(path) => Op::Workdir(c_path(path)),
            _ => Op::Gate,
        })
    }

    /// How the cgroup is mounted, where it is.
    fn cgroup_attr(&self) -> Option<Attr> {
        self.plan.steps.iter().find_map(|p| match &p.step {
            Step::CgroupMount if crate::sys::sabotaged(c"cgroup-mount") => Some(Attr::GUARDED),
            Step::CgroupMount => Some(Attr::GUARDED | Attr::RDONLY),
            Step::Mount(Mount { source: Source::Cgroup, .. }) => Some(Attr::GUARDED),
            _ => None,
        })
    }

    fn cgroup_namespace(&self) -> Op {
        let awaited = matches!(self.plan.limits.way, Some(Way::Systemd(_)));
        Op::CgroupNamespace { awaited, mount: self.cgroup_attr() }
    }

    /// Who the child is inside before its stage `Identity`.
    fn starts_as(&self) -> (u32, u32) {
        match self.plan.joins() {
            true => ids::caller(&self.plan.identities, self.host),
            false => ids::creator(&self.plan.identities, self.host),
        }
    }

    fn set_of(&self, is: impl Fn(&Step) -> bool) -> u64 {
        let found = self.plan.steps.iter().find(|p| is(&p.step));
        found.map_or(0, |p| match &p.step {
            Step::Capabilities(set) | Step::Bounding(set) => set.0,
            _ => 0,
        })
    }
}

/// A number of processors is taken from a place that differs from start to start, so that not all sandboxes keep to
/// the same ones.
fn processors(affinity: &Affinity, host: &Host) -> Result<CpuMask> {
    let count = match affinity {
        Affinity::List(list) => return Ok(CpuMask::of(list.iter())),
        Affinity::Count(count) => *count as usize,
    };
    let mut start = [0; 2];
    crate::sys::host::getrandom(&mut start).map_err(|errno| Error::Sys {
        doing: "choose".into(),
        on: "the processors".into(),
        errno,
    })?;
    let own = &host.processors;
    let from = usize::from(u16::from_ne_bytes(start)) % own.len().max(1);
    Ok(CpuMask::of(own.iter().cycle().skip(from).take(count.min(own.len())).copied()))
}

pub(super) fn resource(name: &str) -> Result<u32> {
    crate::sys::cred::resource(name).ok_or_else(|| Error::Bug(format!("no resource limit {name}")))
}

fn namespace(word: &str) -> Namespaces {
    match word {
        "user" => Namespaces::USER,
        "mount" => Namespaces::MOUNT,
        "pid" => Namespaces::PID,
        "ipc" => Namespaces::IPC,
        "uts" => Namespaces::UTS,
        "cgroup" => Namespaces::CGROUP,
        "time" => Namespaces::TIME,
        "net" => Namespaces::NET,
        _ => Namespaces::NONE,
    }
}

/// The filter of init's that the program inherits, once.
fn inherited(script: &mut Script) -> Option<Op> {
    let listening = script.program.listening.take();
    let plain = script.program.init_filter.take()?;
    Some(match listening {
        Some((_, listening, _)) => Op::Listen(listening, plain),
        None => Op::Filter(plain),
    })
}

/// The operations of the stage `Enter`.
fn enter(step: &Step) -> Result<Op> {
    Ok(match step {
        Step::Session => Op::Session,
        Step::TimeOffset(t) => {
            Op::TimeOffset(c_text(format!("monotonic {} 0\nboottime {} 0\n", t.monotonic, t.boottime))?)
        }
        Step::HostName(name) => Op::HostName(name.clone().into_bytes()),
        Step::Sysctl(key, value) => {
            let path = format!("sys/{}", key.replace('.', "/"));
            Op::WriteProc(c_text(path)?, value.clone().into_bytes())
        }
        Step::OomScoreAdj(score) => Op::WriteProc(c_text("self/oom_score_adj")?, score.to_string().into_bytes()),
        Step::Nice(nice) => Op::Nice(*nice),
        _ => Op::Network,
    })
}

/// A place inside with the names above it, all relative to the root.
pub(super) fn target(path: &Path) -> Result<Target> {
    let mut whole = std::path::PathBuf::new();
    let mut parts = Vec::new();
    for part in path.components().filter(|part| matches!(part, std::path::Component::Normal(_))) {
        whole.push(part);
        parts.push((c_path(&whole), c_text(part.as_os_str().as_bytes())?));
    }
    let path = if parts.is_empty() { c".".to_owned() } else { c_path(&whole) };
    Ok(Target { path, parts })
}

/// A path below a mount point, relative to it.
fn below(path: &InnerPath, mount: &str) -> Result<CString> {
    let rest = path.as_path().strip_prefix(mount).map_err(|_| Error::Bug(format!("{path} is not below {mount}")))?;
    Ok(c_path(rest))
}

fn masked(mask: &Masked) -> Result<Op> {
    let asked = mask.asked;
    let (base, path) = match () {
        () if mask.path.is_below("/proc") => (Base::Proc, below(&mask.path, "/proc")?),
        () if mask.path.is_below("/sys") => (Base::Sys, below(&mask.path, "/sys")?),
        () => (Base::Root, c_path(mask.path.below_root())),
    };
    Ok(Op::Mask { base, path, asked })
}
