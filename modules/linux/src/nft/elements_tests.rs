use super::*;

fn some(n: u8) -> Element {
    Element {
        key: vec![n; 16],
        key_end: n.is_multiple_of(2).then(|| vec![n; 16]),
        data: n.is_multiple_of(3).then(|| vec![n; 8]),
        comment: if n.is_multiple_of(5) { String::new() } else { format!("space/service-{n}") },
        expires: None,
    }
}

fn batch(count: u8) -> Batch {
    let mut batch = Batch::new("homelab");
    for n in 0..count {
        batch.add("endpoints4", &some(n)).unwrap_or_else(|e| panic!("{e}"));
    }
    batch.done.extend(batch.open.take().map(Open::close));
    batch
}

#[test]
fn elements_come_back_as_written() {
    let batch = batch(7);
    assert_eq!((batch.len(), batch.done.len()), (7, 1));
    let body = &batch.done[0].as_bytes()[16..];
    assert_eq!(elements(body), Some((0..7).map(some).collect::<Vec<_>>()));
}

#[test]
fn the_longest_elements_fit_a_message() {
    let long = vec![1; VALUE_MAX];
    let comment = "c".repeat(COMMENT_MAX);
    let element =
        Element { key: long.clone(), key_end: Some(long.clone()), data: Some(long), comment, expires: None };
    let mut batch = Batch::new("homelab");
    for _ in 0..1000 {
        batch.add("s", &element).unwrap_or_else(|e| panic!("{e}"));
    }
    batch.done.extend(batch.open.take().map(Open::close));
    let read: usize = batch.done.iter().map(|m| elements(&m.as_bytes()[16..]).map_or(0, |e| e.len())).sum();
    assert_eq!(read, 1000);
    assert!(batch.done.iter().all(|m| m.as_bytes().len() < usize::from(u16::MAX)));
}

#[test]
fn what_no_set_can_hold_is_refused() {
    let good = some(1);
    for bad in [
        Element { key: Vec::new(), ..good.clone() },
        Element { key: vec![0; 65], ..good.clone() },
        Element { key_end: Some(vec![0; 65]), ..good.clone() },
        Element { data: Some(vec![0; 65]), ..good.clone() },
        Element { comment: "c".repeat(129), ..good.clone() },
        Element { comment: "a\0b".into(), ..good.clone() },
    ] {
        let mut batch = Batch::new("homelab");
        assert!(matches!(batch.add("s", &bad), Err(ElementError::Invalid { .. })), "{bad:?}");
        assert!(batch.is_empty());
    }
}

#[test]
fn blame_follows_the_kernels_offset() {
    let batch = batch(7);
    let places = sent(batch.done[0].as_bytes()).places;
    let refusal = |offset| Refusal { message: Some(0), code: Errno::EEXIST, words: String::new(), offset };
    for (n, (place, element)) in (0..7).zip(&places) {
        assert_eq!(*element, some(n));
        for offset in [*place, place + 4] {
            match batch.blame(refusal(Some(offset))) {
                ElementError::Refused { set, adding: true, element: Some(found), comments, .. } => {
                    assert_eq!((set.as_str(), &*found), ("endpoints4", element));
                    assert_eq!(comments, std::slice::from_ref(&element.comment));
                }
                other => panic!("{other}"),
            }
        }
    }
    match batch.blame(refusal(None)) {
        ElementError::Refused { element: None, comments, .. } => assert_eq!(comments.len(), NAMED),
        other => panic!("{other}"),
    }
    let missing = Refusal { code: Errno::ENOENT, ..refusal(Some(20)) };
    assert!(matches!(batch.blame(missing), ElementError::NoSuchSet { .. }));
    for message in [None, Some(1)] {
        let whole = batch.blame(Refusal { message, ..refusal(Some(60)) });
        assert!(matches!(whole, ElementError::Netlink(_)));
    }
}

#[test]
fn hostile_bytes_do_no_harm() {
    assert_eq!(comment(&[]), "");
    assert_eq!(comment(&[0]), "");
    assert_eq!(comment(&[0, 200, 1]), "");
    assert_eq!(comment(&[1, 2, 9, 9, 0, 2, b'a', 0]), "a");
    assert_eq!(comment(&[0, 0]), "");
    let batch = batch(7);
    let whole = batch.done[0].as_bytes();
    for end in 0..whole.len() {
        let _ = elements(&whole[..end]);
        let _ = sent(&whole[..end]);
    }
    for at in 0..whole.len() {
        for byte in [0, 1, 0x7f, 0xff] {
            let mut bad = whole.to_vec();
            bad[at] = byte;
            let _ = elements(bad.get(16..).unwrap_or_default());
            let _ = sent(&bad);
        }
    }
}
