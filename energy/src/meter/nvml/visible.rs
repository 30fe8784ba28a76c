//! Which boards and MIG slices a process may use: `CUDA_VISIBLE_DEVICES`.
//!
//! The variable holds indices, UUIDs (`GPU-`, `MIG-`) or unambiguous beginnings of them, separated by commas. Unset
//! means every board, empty none. CUDA stops at the first entry it does not know or has seen already, and so does
//! this; a slice is refused aloud instead, because its board must not be charged in its place.

use super::driver::Board;

/// A board, or slices of it, by position in NVML's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Visible {
    pub(super) board: usize,
    /// None: the whole board.
    pub(super) slices: Option<Vec<usize>>,
}

/// Why the variable cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unclear {
    /// No board has this slice.
    Slice(String),
    /// Indices count boards in an order that is not known here: CUDA puts the fastest first.
    Order,
}

/// The boards that `list` names. `by_bus` says that CUDA counts boards by bus, as NVML does
/// (`CUDA_DEVICE_ORDER=PCI_BUS_ID`), `resolve` gives a slice's UUID for another name of it.
pub(super) fn visible(
    list: Option<&str>,
    by_bus: bool,
    boards: &[Board],
    resolve: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Visible>, Unclear> {
    let Some(list) = list else {
        return Ok((0..boards.len()).map(|board| Visible { board, slices: None }).collect());
    };
    let mut found: Vec<Visible> = Vec::new();
    let mut by_index = false;
    for entry in list.split(',').map(str::trim) {
        if entry.starts_with("MIG-") {
            let (board, slice) = find_slice(entry, boards)
                .or_else(|| find_slice(&resolve(entry)?, boards))
                .ok_or_else(|| Unclear::Slice(entry.into()))?;
            match found.iter_mut().find(|visible| visible.board == board) {
                None => found.push(Visible { board, slices: Some(vec![slice]) }),
                Some(Visible { slices: Some(slices), .. }) if !slices.contains(&slice) => slices.push(slice),
                Some(_) => break,
            }
            continue;
        }
        let index = entry.parse::<usize>().ok().filter(|index| *index < boards.len());
        by_index |= index.is_some();
        let named = || unique(boards.iter().map(|board| board.uuid.as_str()), entry);
        match index.or_else(|| entry.starts_with("GPU-").then(named).flatten()) {
            Some(board) if found.iter().all(|visible| visible.board != board) => {
                found.push(Visible { board, slices: None });
            }
            _ => break,
        }
    }
    let alike = boards.windows(2).all(|pair| pair[0].name == pair[1].name);
    if by_index && !by_bus && !alike && found.len() < boards.len() {
        return Err(Unclear::Order);
    }
    Ok(found)
}

/// Positions of the board and of the slice in it.
fn find_slice(name: &str, boards: &[Board]) -> Option<(usize, usize)> {
    let slices: Vec<(usize, usize)> = boards
        .iter()
        .enumerate()
        .flat_map(|(board, listed)| (0..listed.slices.len()).map(move |slice| (board, slice)))
        .collect();
    let uuids = slices.iter().map(|(board, slice)| boards[*board].slices[*slice].uuid.as_str());
    unique(uuids, name).map(|found| slices[found])
}

/// The position of the one name that is `wanted`, or of the only one that begins with it.
fn unique<'a>(names: impl Iterator<Item = &'a str> + Clone, wanted: &str) -> Option<usize> {
    if let Some(exact) = names.clone().position(|name| name == wanted) {
        return Some(exact);
    }
    let mut beginning = names.enumerate().filter(|(_, name)| name.starts_with(wanted));
    let (found, _) = beginning.next()?;
    beginning.next().is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{board, slice};
    use super::*;

    fn boards() -> Vec<Board> {
        vec![
            board("GPU-11aa"),
            Board { slices: vec![slice("MIG-71", 3), slice("MIG-72", 2)], ..board("GPU-22bb") },
            board("GPU-22cc"),
        ]
    }

    fn whole(list: Option<&str>) -> Vec<usize> {
        let found = visible(list, false, &boards(), |_| None).unwrap();
        assert!(found.iter().all(|visible| visible.slices.is_none()));
        found.iter().map(|visible| visible.board).collect()
    }

    #[test]
    fn indices_and_uuids_are_followed_until_the_first_that_is_unknown_or_repeated() {
        for (list, expect) in [
            (None, vec![0, 1, 2]),
            (Some(""), vec![]),
            (Some("1"), vec![1]),
            (Some("2, 0"), vec![2, 0]),
            (Some("GPU-11"), vec![0]),
            (Some("GPU-22bb,GPU-11aa"), vec![1, 0]),
            (Some("GPU-22"), vec![]),
            (Some("GPU-11aa,1"), vec![0, 1]),
            (Some("0,9,1"), vec![0]),
            (Some("0,0,1"), vec![0]),
            (Some("0,GPU-11,1"), vec![0]),
            (Some("0,,1"), vec![0]),
            (Some("-1"), vec![]),
            (Some("1.5"), vec![]),
            (Some("99999999999999999999"), vec![]),
            (Some("NoDevFiles"), vec![]),
            (Some("GPU-11aaXX"), vec![]),
        ] {
            assert_eq!(whole(list), expect, "{list:?}");
        }
    }

    #[test]
    fn slices_are_found_by_uuid_and_gathered_by_board() {
        let found = visible(Some("MIG-72,MIG-71,0"), false, &boards(), |_| None).unwrap();
        assert_eq!(found[0], Visible { board: 1, slices: Some(vec![1, 0]) });
        assert_eq!(found[1], Visible { board: 0, slices: None });
        let older_name = |name: &str| (name == "MIG-GPU-22bb/2/0").then(|| "MIG-72".to_owned());
        let found = visible(Some("MIG-GPU-22bb/2/0"), false, &boards(), older_name).unwrap();
        assert_eq!(found, [Visible { board: 1, slices: Some(vec![1]) }]);
    }

    #[test]
    fn a_board_and_its_own_slice_do_not_count_twice() {
        let found = visible(Some("1,MIG-72,0"), false, &boards(), |_| None).unwrap();
        assert_eq!(found, [Visible { board: 1, slices: None }]);
        let found = visible(Some("MIG-72,MIG-72,0"), false, &boards(), |_| None).unwrap();
        assert_eq!(found, [Visible { board: 1, slices: Some(vec![1]) }]);
    }

    #[test]
    fn an_unknown_slice_is_named() {
        let unclear = visible(Some("MIG-79"), false, &boards(), |_| None).unwrap_err();
        assert_eq!(unclear, Unclear::Slice("MIG-79".into()));
        assert!(visible(Some("MIG-7"), false, &boards(), |_| None).is_err(), "two slices begin so");
    }

    #[test]
    fn an_index_among_boards_of_different_kinds_needs_the_order_by_bus() {
        let mut mixed = boards();
        mixed[2].name = "another".into();
        assert_eq!(visible(Some("2"), false, &mixed, |_| None), Err(Unclear::Order));
        assert_eq!(visible(Some("2"), true, &mixed, |_| None).unwrap().len(), 1);
        assert_eq!(visible(Some("GPU-22cc"), false, &mixed, |_| None).unwrap().len(), 1);
        assert_eq!(visible(Some("2,1,0"), false, &mixed, |_| None).unwrap().len(), 3);
    }
}
