//! Whatever the disk and however its stream is laid out and cut, the ranges are those of the oracle.

use proptest::prelude::*;
use vmferry_disk::qcow2::{Content, Head, HeadError, MAX_VIRTUAL_SIZE};

use crate::model::{Cluster, Image, example, read};

const CONTENTS: [Content; 2] = [Content::Whole, Content::Difference];

fn cluster() -> impl Strategy<Value = Cluster> {
    prop_oneof![
        8 => Just(Cluster::Absent),
        1 => Just(Cluster::Zero { placed: false }),
        1 => Just(Cluster::Zero { placed: true }),
        4 => Just(Cluster::Data),
    ]
}

prop_compose! {
    fn image()(
        version in 2..=3u32,
        cluster_bits in prop_oneof![4 => Just(9u32), 1 => Just(12), 1 => Just(16)],
        (runs, short, gap, turned) in (
            prop::collection::vec((cluster(), 1..90usize), 0..12),
            0..2u64,
            0..3u64,
            0..9usize,
        ),
    ) -> Image {
        let mut clusters: Vec<Cluster> = runs.iter().flat_map(|(state, run)| vec![*state; *run]).collect();
        if version == 2 {
            let zero = |state: &&mut Cluster| matches!(state, Cluster::Zero { .. });
            clusters.iter_mut().filter(zero).for_each(|state| *state = Cluster::Absent);
        }
        // The last cluster may end behind the disk.
        let size = (clusters.len() as u64) << cluster_bits;
        let short = if clusters.is_empty() { 0 } else { short * ((1 << cluster_bits) - 512) };
        Image { version, cluster_bits, size: size - short, clusters, gap, turned }
    }
}

proptest! {
    #[test]
    fn the_ranges_are_those_that_the_tables_set(image in image(), cut in prop_oneof![1..600usize, Just(1 << 30)]) {
        let head = image.head();
        // A disk without data ends with its L1 table, not with the cluster that holds it.
        let stream = [head.as_slice(), &[0xa5; 3000]].concat();
        for content in CONTENTS {
            let (read, taken) = read(&stream, content, cut).unwrap();
            let read = read.expect("a complete head");
            prop_assert_eq!(read.extents().iter().collect::<Vec<_>>(), image.expected(content));
            prop_assert_eq!((read.virtual_size(), read.cluster_size()), (image.size, image.cluster()));
            prop_assert_eq!((read.length(), taken), (taken, if image.clusters.is_empty() { 104 } else { head.len() as u64 }));
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_take_more_than_there_is(
        image in image(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in 1..600usize,
    ) {
        let mut stream = image.head();
        for (at, byte) in flips {
            let at = at.index(stream.len().min(4096));
            stream[at] = byte;
        }
        for content in CONTENTS {
            let whole = read(&stream, content, usize::MAX >> 1);
            prop_assert_eq!(&whole, &read(&stream, content, cut));
            if let Ok((Some(head), taken)) = whole {
                prop_assert!(taken <= stream.len() as u64 && head.extents().end() <= head.virtual_size());
            }
        }
    }
}

#[tokio::test]
async fn not_a_byte_of_the_data_is_read() {
    let head = example().head();
    let stream = [head.as_slice(), b"data"].concat();
    let mut rest = stream.as_slice();
    let read = Head::read(&mut rest, Content::Whole).await.unwrap();
    assert_eq!((rest, read.length()), (&b"data"[..], head.len() as u64));
}

#[tokio::test]
async fn a_cut_head_is_told_with_its_place() {
    let head = example().head();
    for at in [0, 50, 104, 1000, head.len() - 1] {
        let cut = Head::read(&mut &head[..at], Content::Whole).await;
        assert!(matches!(cut, Err(HeadError::Truncated { at: found }) if found == at as u64), "{at}: {cut:?}");
    }
}

#[test]
fn the_largest_disk_is_read_as_far_as_it_comes() {
    const CLUSTER: usize = 64 << 10;
    let tables = MAX_VIRTUAL_SIZE / (8192 * CLUSTER as u64);
    let l1_end = CLUSTER as u64 + tables * 8;
    let mut stream = vec![0; CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| stream[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &16u32.to_be_bytes());
    put(24, &MAX_VIRTUAL_SIZE.to_be_bytes());
    put(36, &(tables as u32).to_be_bytes());
    put(40, &(CLUSTER as u64).to_be_bytes());
    stream.extend((0..tables).flat_map(|table| (l1_end + table * CLUSTER as u64).to_be_bytes()));
    // Of 8 GiB of L2 tables the first ones, of which nothing but ranges is kept.
    let data = l1_end + tables * CLUSTER as u64;
    stream.extend((0..64 * 8192).flat_map(|_| data.to_be_bytes()));
    assert_eq!(read(&stream, Content::Whole, CLUSTER), Ok((None, stream.len() as u64)));
}
