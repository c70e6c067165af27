//! Paths in JSON: a text, or the bytes where they are no UTF-8.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
#[serde(untagged)]
enum Either {
    Text(PathBuf),
    Bytes(Vec<u8>),
}

pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => text.serialize(to),
        None => path.as_os_str().as_bytes().serialize(to),
    }
}

pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    Ok(match Either::deserialize(from)? {
        Either::Text(path) => path,
        Either::Bytes(bytes) => OsString::from_vec(bytes).into(),
    })
}

/// The same for a path that may be absent.
pub mod optional {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct One(#[serde(with = "super")] PathBuf);

    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
        path.clone().map(One).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<One>::deserialize(from)?.map(|One(path)| path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    struct Both(#[serde(with = "super")] PathBuf, #[serde(with = "super::optional")] Option<PathBuf>);

    #[test]
    fn any_path_comes_out_as_it_went_in() {
        let odd = PathBuf::from(OsString::from_vec(b"/a\xff".to_vec()));
        for both in [Both("/ü".into(), None), Both(odd.clone(), Some("/x".into())), Both("/".into(), Some(odd))] {
            let text = serde_json::to_string(&both).expect("JSON");
            assert_eq!(serde_json::from_str::<Both>(&text).expect("read"), both, "{text}");
        }
    }
}
