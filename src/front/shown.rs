//! A policy as it is resolved, with what it extends, and where each value comes from: `sbx policy show`.
//!
//! The precedence is that of `Spec::resolve`, in text form: read again, the text resolves to the same Spec.

use super::policy::{Source, is_file};
use crate::error::Result;
use crate::spec::mount::Mount;
use crate::spec::text::Caller;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value as it is written, and where.
#[derive(Clone, Debug)]
struct Written {
    text: String,
    origin: String,
}

#[derive(Clone, Debug)]
enum Merged {
    One(Written),
    List(Vec<Written>),
}

/// A policy and its bases as one.
#[derive(Debug, Default)]
pub struct Shown {
    /// By table and key; the tables of the top are "".
    values: BTreeMap<(String, String), Merged>,
    mounts: Vec<ShownMount>,
}

/// A `[[mount]]`.
#[derive(Debug)]
struct ShownMount {
    keys: BTreeMap<String, String>,
    origin: String,
    /// Its place inside.
    place: String,
}

/// Merges the sources, the weakest first.
///
/// # Errors
/// As [`Mount::table`], for a mount's place inside has to be known.
pub fn merge(sources: &[Source], caller: &Caller) -> Result<Shown> {
    let mut shown = Shown::default();
    for source in sources {
        shown.add(source, caller)?;
    }
    Ok(shown)
}

impl Shown {
    fn add(&mut self, source: &Source, caller: &Caller) -> Result<()> {
        let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
        // It was parsed before.
        let Ok(table) = DeTable::parse(text) else { return Ok(()) };
        let reader = Reader { name: &source.name, text };
        // As in `Spec::resolve`: `all` empties the list at its layer.
        if source.layer.caps.drop.iter().any(|name| name.eq_ignore_ascii_case("all")) {
            self.values.remove(&("caps".into(), "add".into()));
        }
        let places = source.layer.mount.iter().map(|table| Ok(Mount::table(caller, table)?.dst.to_string()));
        let places = places.collect::<Result<Vec<_>>>()?;
        self.mounts.retain(|mount| !places.contains(&mount.place));
        self.table("", table.get_ref(), &reader, &places);
        Ok(())
    }

    fn table(&mut self, name: &str, table: &DeTable<'_>, reader: &Reader<'_>, places: &[String]) {
        for (key, value) in table {
            let key = key.get_ref().to_string();
            let below = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            match value.get_ref() {
                _ if below == "extends" => {}
                DeValue::Array(list) if below == "mount" => {
                    for (mount, place) in list.iter().zip(places) {
                        let DeValue::Table(keys) = mount.get_ref() else { continue };
                        let keys = keys.iter().map(|(k, v)| (k.get_ref().to_string(), reader.text(v)));
                        let (keys, origin) = (keys.collect(), reader.origin(mount.span()));
                        self.mounts.push(ShownMount { keys, origin, place: place.clone() });
                    }
                }
                DeValue::Table(keys) => self.table(&below, keys, reader, places),
                DeValue::Array(list) => {
                    let new = list.iter().map(|value| reader.written(value));
                    let place = self.values.entry((name.into(), key)).or_insert(Merged::List(Vec::new()));
                    match place {
                        // Of this the last list counts as a whole.
                        Merged::List(old) if &*below != "identity.map" => old.extend(new),
                        place => *place = Merged::List(new.collect()),
                    }
                }
                _ => drop(self.values.insert((name.into(), key), Merged::One(reader.written(value)))),
            }
        }
    }

    /// Where the value of a key comes from; of a list the last entry that `is` holds for.
    pub fn origin(&self, table: &str, key: &str, is: impl Fn(&str) -> bool) -> Option<String> {
        let found = match self.values.get(&(table.to_owned(), key.to_owned()))? {
            Merged::One(written) => Some(written),
            Merged::List(list) => list.iter().rfind(|written| is(&written.text)),
        };
        found.map(|written| written.origin.clone())
    }

    /// Where the entry of this number in a list comes from.
    pub fn nth_origin(&self, table: &str, key: &str, number: usize) -> Option<String> {
        match self.values.get(&(table.to_owned(), key.to_owned()))? {
            Merged::List(list) => list.get(number).map(|written| written.origin.clone()),
            Merged::One(_) => None,
        }
    }

    /// Where the mount at this place comes from.
    pub fn mount_origin(&self, place: &str) -> Option<String> {
        self.mounts.iter().rfind(|mount| mount.place == place).map(|mount| mount.origin.clone())
    }

    /// As TOML, each value with a comment on where it comes from.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut table = "";
        for ((name, key), value) in &self.values {
            if name != table {
                text.push_str(&format!("\n[{}]\n", name.split('.').map(quoted).collect::<Vec<_>>().join(".")));
                table = name;
            }
            let key = quoted(key);
            match value {
                Merged::One(written) => text.push_str(&format!("{key} = {}  # {}\n", written.text, written.origin)),
                Merged::List(list) => {
                    text.push_str(&format!("{key} = [\n"));
                    list.iter().for_each(|w| text.push_str(&format!("    {},  # {}\n", w.text, w.origin)));
                    text.push_str("]\n");
                }
            }
        }
        for mount in &self.mounts {
            text.push_str(&format!("\n[[mount]]  # {}\n", mount.origin));
            mount.keys.iter().for_each(|(key, value)| text.push_str(&format!("{key} = {value}\n")));
        }
        text
    }

    /// The same as JSON: `values` with `table`, `key`, `value` (as TOML writes it) and `origin`; `mounts` likewise.
    pub fn to_json(&self) -> Value {
        let one = |w: &Written| json!({"value": w.text, "origin": w.origin});
        let values = self.values.iter().map(|((table, key), value)| match value {
            Merged::One(written) => {
                json!({"table": table, "key": key, "value": written.text, "origin": written.origin})
            }
            Merged::List(list) => {
                json!({"table": table, "key": key, "values": list.iter().map(one).collect::<Vec<_>>()})
            }
        });
        let mount = |m: &ShownMount| json!({"origin": m.origin, "dst": m.place, "keys": m.keys});
        let mounts = self.mounts.iter().map(mount);
        json!({"values": values.collect::<Vec<_>>(), "mounts": mounts.collect::<Vec<_>>()})
    }
}

/// A key that needs no quotes stays as it is.
fn quoted(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if bare { key.to_owned() } else { Value::from(key).to_string() }
}

struct Reader<'a> {
    name: &'a str,
    text: &'a str,
}

impl Reader<'_> {
    /// A value as it is written; a table that has a head of its own, as one in a line.
    fn text(&self, value: &Spanned<DeValue<'_>>) -> String {
        match value.get_ref() {
            DeValue::Table(keys) => {
                let keys = keys.iter().map(|(k, v)| format!("{} = {}", quoted(k.get_ref()), self.text(v)));
                format!("{{ {} }}", keys.collect::<Vec<_>>().join(", "))
            }
            DeValue::Array(list) => format!("[{}]", list.iter().map(|v| self.text(v)).collect::<Vec<_>>().join(", ")),
            _ => self.text.get(value.span()).unwrap_or_default().to_owned(),
        }
    }

    /// The file and the line; of a ready policy its name.
    fn origin(&self, span: Range<usize>) -> String {
        if !is_file(self.name) {
            return self.name.to_owned();
        }
        let line = self.text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count() + 1;
        format!("{}:{line}", crate::error::visible(self.name))
    }

    fn written(&self, value: &Spanned<DeValue<'_>>) -> Written {
        Written { text: self.text(value), origin: self.origin(value.span()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{policy, ready};
    use super::*;
    use crate::spec::Spec;
    use crate::spec::layer::{Layer, Origin};

    fn caller() -> Caller {
        let env = [("MY_TOKEN", "t"), ("CARGO_HOME", "/c"), ("CC", "gcc")].map(|(k, v)| (k.into(), v.into()));
        Caller { cwd: "/work/p".into(), home: "/home/me".into(), env: env.to_vec() }
    }

    fn spec(layers: Vec<Layer>) -> Spec {
        let argv = Layer { rootfs: Some("/r".into()), ..Layer::default() };
        let layers: Vec<Layer> = layers.into_iter().chain([argv]).collect();
        let mut spec = Spec::resolve(&layers, &caller()).expect("resolves");
        // Of one name the last counts.
        let last: BTreeMap<_, _> = std::mem::take(&mut spec.env.set).into_iter().collect();
        spec.env.set = last.into_iter().collect();
        spec
    }

    fn same_again(sources: &[Source]) -> String {
        let text = merge(sources, &caller()).expect("merges").to_toml();
        let again = policy::parse("shown", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let again = Layer { origin: Origin::Policy("shown".into()), ..again };
        assert_eq!(spec(vec![again]), spec(sources.iter().map(|source| source.layer.clone()).collect()), "{text}");
        text
    }

    #[test]
    fn what_is_shown_is_what_is_resolved() {
        for name in ready::names() {
            same_again(&policy::sources(name, &caller()).expect("ready"));
        }
    }

    #[test]
    fn later_layers_win_and_are_named() {
        let source = |name: &str, text: &str| {
            let layer = Layer { origin: Origin::Policy(name.into()), ..policy::parse(name, text).expect("parses") };
            Source { name: name.into(), text: text.into(), layer }
        };
        let first = source(
            "a.toml",
            "identity.map = [\"keep\"]\nlandlock.scope = [\"signals\"]\nlandlock.tcp-bind = [80]\n[limits]\npids = 5\nmem = \"1G\"\n[caps]\nadd = [\"SYS_ADMIN\"]\n[env.set]\n\
             \"A.b\" = '1'\nX = \"1\"\n[[mount]]\nsrc = \"/a\"\ndst = \"/x\"\n[[mount]]\nsrc = \"/b\"\n\
             [[seccomp.rule]]\ncalls = [\"socket\"]  # why\nargs = [\n  { index = 0, value = 38 },  # AF_ALG\n]\nerrno = \"EACCES\"\n\
             [[seccomp.rule]]\ncalls = [\"@keyring\"]\naction = \"kill\"\n",
        );
        let second = source(
            "b.toml",
            "identity.map = [\"root\"]\nlandlock.scope = [\"abstract-sockets\"]\nhide.paths = [\"~\"]\n[limits]\npids = 7\n[caps]\ndrop = [\"all\"]\nadd = [\"CHOWN\"]\n\
             [env.set]\nX = \"2\"\n[[mount]]\nsrc = \"/c\"\ndst = \"/x\"\naccess = \"rw\"\n",
        );
        let text = same_again(&[first, second]);
        for line in
            ["pids = 7  # b.toml:5", "mem = \"1G\"  # a.toml:6", "    \"root\",  # b.toml:1", "[[mount]]  # b.toml:11"]
        {
            assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
        }
        assert!(!text.contains("SYS_ADMIN") && !text.contains("\"/a\"") && !text.contains("\"keep\""), "{text}");
        assert!(text.contains("signals") && text.contains("abstract-sockets"), "{text}");
    }
}
