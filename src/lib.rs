//! A sandbox for an ordinary user: no root, no daemon, no setuid file of its own.
//!
//! What a user asks for is a [`Layer`], from the command line or a policy file. [`Spec::resolve`] merges layers and
//! checks them; [`Host::look`] gathers the facts about this machine; [`plan::plan`] makes of both the ordered steps of
//! one launch and refuses what cannot work here; [`launch::launch`] does them and serves the program to its end.
//! Nothing else reaches the launcher. ARCHITECTURE.md is the map.
//!
//! The library never prints and never reads the environment, but for [`host::caller`]. [`launch::launch`] must be
//! called by a process with a single thread, since the sandbox's first process goes on as a copy of the caller.
//!
//! ```no_run
//! use sbx::launch::{Event, Request, Told};
//! use sbx::{Host, Layer, Spec, StateDir};
//!
//! fn main() -> sbx::Result<()> {
//!     let asked = Layer {
//!         rootfs: Some("./rootfs".into()),
//!         command: vec!["/bin/echo".into(), "hello".into()],
//!         ..Layer::default()
//!     };
//!     let caller = sbx::host::caller()?;
//!     let spec = Spec::resolve(&[asked], &caller)?;
//!     let host = Host::look(&spec, caller)?;
//!     let plan = sbx::plan::plan(&spec, &host, "hello")?;
//!     print!("{plan}");
//!
//!     let state = StateDir::open("/run/user/1000/sbx".as_ref())?;
//!     let request = Request { state: &state, told: Told::default(), exposed: Vec::new(), words: None };
//!     let exit = sbx::launch::launch(&plan, &host, &request, &mut |event: &Event<'_>| {
//!         if let Event::Skipped(step) = event {
//!             eprintln!("skipped: {}", step.step);
//!         }
//!     })?;
//!     println!("ended with status {}", exit.status());
//!     Ok(())
//! }
//! ```

pub mod cgroup;
pub mod error;
pub mod front;
pub mod host;
pub mod launch;
pub mod plan;
pub mod spec;
pub mod state;
pub mod sys;

pub use error::{Error, Result};
pub use host::Host;
pub use plan::Plan;
pub use spec::{Layer, Spec};
pub use state::StateDir;
