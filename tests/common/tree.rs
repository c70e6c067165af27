//! A directory tree in one text, to be compared before and after: names, types, modes, owners, sizes, times, bytes.

use std::fmt::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// One line for each entry below `dir`, itself included.
pub fn picture(dir: &Path) -> String {
    let mut text = String::new();
    draw(dir, Path::new("."), &mut text);
    text
}

fn draw(path: &Path, name: &Path, text: &mut String) {
    let meta = path.symlink_metadata().expect("an entry of the tree");
    let kind = meta.file_type();
    write!(
        text,
        "{} {:o} {}:{} {}.{}",
        name.display(),
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec()
    )
    .expect("text");
    if kind.is_symlink() {
        writeln!(text, " -> {}", path.read_link().expect("a link").display()).expect("text");
    } else if kind.is_file() {
        let bytes = std::fs::read(path).unwrap_or_default();
        let sum = bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        writeln!(text, " {} {sum:x}", bytes.len()).expect("text");
    } else if kind.is_dir() {
        text.push('\n');
        let mut names: Vec<_> =
            std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        names.sort();
        names.iter().for_each(|entry| draw(&path.join(entry), &name.join(entry), text));
    } else {
        let what = if kind.is_fifo() { "fifo" } else { "special" };
        writeln!(text, " {what} {}", meta.rdev()).expect("text");
    }
}
