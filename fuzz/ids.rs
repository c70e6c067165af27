//! Lines of subuid(5), passwd(5) and group(5), and the words of users and maps: no range passes the last id, and no
//! map that is taken overlaps or holds the host's id 0.

#![no_main]

use sbx::spec::ids::{Map, User, accounts, all_subordinate, groups, subordinate};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let mine = subordinate(text, "me", 1000);
    let all = all_subordinate(text);
    assert!(mine.iter().all(|range| all.contains(range)));
    assert!(all.iter().all(|&(first, count)| count > 0 && first.checked_add(count).is_some()));
    assert!(accounts(text).all(|account| account.uid != u32::MAX && account.gid != u32::MAX));
    assert!(groups(text).all(|(_, gid, members)| gid != u32::MAX && !members.contains(&"")));
    let _ = User::parse(text).map_err(|error| error.to_string());
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if let Ok(Map::Explicit(extents)) = Map::parse(&words) {
        assert!(extents.iter().all(|extent| extent.outer > 0 && extent.count > 0));
        let mut outer: Vec<_> = extents.iter().map(|e| (u64::from(e.outer), u64::from(e.count))).collect();
        outer.sort_unstable();
        assert!(outer.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{extents:?}");
    }
});
