//! Chains of copy-on-write nodes, each one a file as the storage manager would keep it.
//!
//! A snapshot turns the live node into the parent of two empty ones; nothing is copied, whatever the
//! size of the disk. Data is kept in pages of 64 KiB, while allocation counts in VHD blocks of 2 MiB, as on an SR.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::BLOCK_SIZE;

/// Small enough that scattered writes cost little memory.
pub(crate) const PAGE_SIZE: u64 = 64 << 10;
const PAGES_PER_BLOCK: u64 = BLOCK_SIZE / PAGE_SIZE;

pub(crate) type Page = Arc<[u8]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeId(u64);

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) parent: Option<NodeId>,
    /// The uuid in the footer of the file; it belongs to the file, not to the VDI.
    pub(crate) vhd_uuid: Uuid,
    /// A raw file knows no allocation and cannot be the base of a delta.
    pub(crate) raw: bool,
    pages: BTreeMap<u64, Page>,
    /// The 2 MiB blocks that were allocated in this node since it was made.
    blocks: BTreeSet<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Nodes {
    nodes: BTreeMap<NodeId, Node>,
    next: u64,
}

impl Nodes {
    pub(crate) fn create(&mut self, parent: Option<NodeId>, raw: bool) -> NodeId {
        let id = NodeId(self.next);
        self.next += 1;
        let node = Node { parent, vhd_uuid: Uuid::new_v4(), raw, pages: BTreeMap::new(), blocks: BTreeSet::new() };
        self.nodes.insert(id, node);
        id
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// From the node itself up to its root.
    pub(crate) fn chain(&self, id: NodeId) -> impl Iterator<Item = (NodeId, &Node)> {
        let first = self.nodes.get(&id).map(|node| (id, node));
        std::iter::successors(first, |(_, node)| {
            let parent = node.parent?;
            self.nodes.get(&parent).map(|node| (parent, node))
        })
    }

    pub(crate) fn depth(&self, id: NodeId) -> usize {
        self.chain(id).count()
    }

    pub(crate) fn children(&self, id: NodeId) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| node.parent == Some(id)).map(|(child, _)| *child).collect()
    }

    /// Bytes stored in this node alone.
    pub(crate) fn utilisation(&self, id: NodeId) -> u64 {
        self.nodes.get(&id).map_or(0, |node| node.blocks.len() as u64 * BLOCK_SIZE)
    }

    /// How much a write of this range would add to the node.
    pub(crate) fn growth(&self, id: NodeId, offset: u64, length: u64) -> u64 {
        let Some(node) = self.nodes.get(&id).filter(|_| length > 0) else {
            return 0;
        };
        let blocks = offset / BLOCK_SIZE..=(offset + length - 1) / BLOCK_SIZE;
        blocks.filter(|block| !node.blocks.contains(block)).count() as u64 * BLOCK_SIZE
    }

    pub(crate) fn remove(&mut self, id: NodeId) {
        self.nodes.remove(&id);
    }

    /// Folds a node into its parent and removes it; its children hang on the parent from then on. The
    /// parent's file survives, with the content of the child on top.
    pub(crate) fn merge_into_parent(&mut self, id: NodeId) -> Option<NodeId> {
        let parent = self.nodes.get(&id)?.parent?;
        let node = self.nodes.remove(&id)?;
        for other in self.nodes.values_mut().filter(|other| other.parent == Some(id)) {
            other.parent = Some(parent);
        }
        let target = self.nodes.get_mut(&parent)?;
        target.pages.extend(node.pages);
        target.blocks.extend(node.blocks);
        Some(parent)
    }

    fn page(&self, id: NodeId, index: u64) -> Option<&Page> {
        self.chain(id).find_map(|(_, node)| node.pages.get(&index))
    }

    pub(crate) fn read(&self, id: NodeId, offset: u64, buffer: &mut [u8]) {
        for piece in Pieces::new(offset, buffer.len()) {
            let part = &mut buffer[piece.at..piece.at + piece.length];
            match self.page(id, piece.page) {
                Some(page) => part.copy_from_slice(&page[piece.within..piece.within + piece.length]),
                None => part.fill(0),
            }
        }
    }

    /// The pages of one block as the whole chain shows them; `None` is a page of zeroes.
    pub(crate) fn block_pages(&self, id: NodeId, block: u64) -> Vec<Option<Page>> {
        let first = block * PAGES_PER_BLOCK;
        (first..first + PAGES_PER_BLOCK).map(|page| self.page(id, page).cloned()).collect()
    }

    pub(crate) fn write(&mut self, id: NodeId, offset: u64, data: &[u8]) {
        for piece in Pieces::new(offset, data.len()) {
            let part = &data[piece.at..piece.at + piece.length];
            let page: Page = if piece.length as u64 == PAGE_SIZE {
                Arc::from(part)
            } else {
                let mut page = match self.page(id, piece.page) {
                    Some(page) => page.to_vec(),
                    None => vec![0; PAGE_SIZE as usize],
                };
                page[piece.within..piece.within + piece.length].copy_from_slice(part);
                Arc::from(page)
            };
            if let Some(node) = self.nodes.get_mut(&id) {
                node.pages.insert(piece.page, page);
                node.blocks.insert(piece.page / PAGES_PER_BLOCK);
            }
        }
    }

    /// Every page that any node of the chain holds, in order, with its offset.
    pub(crate) fn stored_pages(&self, id: NodeId) -> impl Iterator<Item = (u64, &Page)> {
        let indexes: BTreeSet<u64> = self.chain(id).flat_map(|(_, node)| node.pages.keys().copied()).collect();
        indexes.into_iter().filter_map(move |index| Some((index * PAGE_SIZE, self.page(id, index)?)))
    }

    /// What a full qcow2 export sends: the pages that are allocated, or of which any byte is set where the storage does not
    /// tell what is allocated.
    pub(crate) fn full_pages(&self, id: NodeId, tells_allocation: bool) -> BTreeSet<u64> {
        let sent = |(_, page): &(u64, &Page)| tells_allocation || page.iter().any(|byte| *byte != 0);
        self.stored_pages(id).filter(sent).map(|(offset, _)| offset / PAGE_SIZE).collect()
    }

    /// What a qcow2 export against a base sends: the pages whose content differs. Where both sides tell what is allocated,
    /// a page that one side alone has is sent unseen.
    pub(crate) fn delta_pages(&self, id: NodeId, base: NodeId, tell_allocation: bool) -> BTreeSet<u64> {
        let stored = |id| self.stored_pages(id).map(|(offset, _)| offset / PAGE_SIZE);
        let is_zero = |page: &Page| page.iter().all(|byte| *byte == 0);
        let differs = |index: &u64| match (self.page(id, *index), self.page(base, *index)) {
            (Some(ours), Some(theirs)) => ours != theirs,
            (Some(alone), None) | (None, Some(alone)) => tell_allocation || !is_zero(alone),
            (None, None) => false,
        };
        stored(id).chain(stored(base)).collect::<BTreeSet<_>>().into_iter().filter(differs).collect()
    }

    /// What a full export sends: every block allocated in any file of the chain.
    pub(crate) fn full_blocks(&self, id: NodeId) -> BTreeSet<u64> {
        self.chain(id).flat_map(|(_, node)| node.exported_blocks()).collect()
    }

    /// What a delta export sends: the blocks of all files that are in one chain and not in the other.
    /// It is symmetric, so the base need not be an ancestor.
    pub(crate) fn delta_blocks(&self, id: NodeId, base: NodeId) -> BTreeSet<u64> {
        let ours: BTreeSet<NodeId> = self.chain(id).map(|(id, _)| id).collect();
        let theirs: BTreeSet<NodeId> = self.chain(base).map(|(id, _)| id).collect();
        ours.symmetric_difference(&theirs).filter_map(|id| self.nodes.get(id)).flat_map(Node::exported_blocks).collect()
    }
}

impl Node {
    /// A raw file has no allocation table: its blocks are those that are not all zero.
    fn exported_blocks(&self) -> BTreeSet<u64> {
        if !self.raw {
            return self.blocks.clone();
        }
        let written = self.pages.iter().filter(|(_, page)| page.iter().any(|byte| *byte != 0));
        written.map(|(index, _)| index / PAGES_PER_BLOCK).collect()
    }
}

/// A byte range cut at page boundaries.
struct Pieces {
    offset: u64,
    at: usize,
    length: usize,
}

struct Piece {
    page: u64,
    within: usize,
    at: usize,
    length: usize,
}

impl Pieces {
    fn new(offset: u64, length: usize) -> Self {
        Self { offset, at: 0, length }
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.at == self.length {
            return None;
        }
        let position = self.offset + self.at as u64;
        let within = (position % PAGE_SIZE) as usize;
        let length = (PAGE_SIZE as usize - within).min(self.length - self.at);
        let piece = Piece { page: position / PAGE_SIZE, within, at: self.at, length };
        self.at += length;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A snapshot: both children see what the parent held.
    fn fork(nodes: &mut Nodes, id: NodeId) -> (NodeId, NodeId) {
        (nodes.create(Some(id), false), nodes.create(Some(id), false))
    }

    fn read(nodes: &Nodes, id: NodeId, offset: u64, length: usize) -> Vec<u8> {
        let mut buffer = vec![0xee; length];
        nodes.read(id, offset, &mut buffer);
        buffer
    }

    #[test]
    fn writes_across_pages_are_read_back_and_children_do_not_disturb_each_other() {
        let mut nodes = Nodes::default();
        let base = nodes.create(None, false);
        nodes.write(base, PAGE_SIZE - 2, b"abcd");
        let (live, snapshot) = fork(&mut nodes, base);
        nodes.write(live, PAGE_SIZE, b"XY");
        assert_eq!(read(&nodes, live, PAGE_SIZE - 3, 6), b"\0abXY\0");
        assert_eq!(read(&nodes, snapshot, PAGE_SIZE - 3, 6), b"\0abcd\0");
    }

    #[test]
    fn a_delta_is_the_symmetric_difference_of_files() {
        let mut nodes = Nodes::default();
        let base = nodes.create(None, false);
        nodes.write(base, 0, &[1]);
        let (live, snapshot) = fork(&mut nodes, base);
        nodes.write(live, 5 * BLOCK_SIZE, &[2]);
        nodes.write(snapshot, 7 * BLOCK_SIZE, &[3]);
        assert_eq!(nodes.delta_blocks(live, snapshot), BTreeSet::from([5, 7]));
        assert_eq!(nodes.delta_blocks(snapshot, live), BTreeSet::from([5, 7]));
        assert_eq!(nodes.delta_blocks(live, live), BTreeSet::new());
        assert_eq!(nodes.full_blocks(live), BTreeSet::from([0, 5]));
    }

    #[test]
    fn merging_keeps_every_view() {
        let mut nodes = Nodes::default();
        let root = nodes.create(None, false);
        nodes.write(root, 0, b"old");
        let middle = nodes.create(Some(root), false);
        nodes.write(middle, 0, b"new");
        let (left, right) = fork(&mut nodes, middle);
        nodes.write(right, 1, b"E");
        assert_eq!(nodes.merge_into_parent(middle), Some(root));
        assert_eq!(read(&nodes, left, 0, 3), b"new");
        assert_eq!(read(&nodes, right, 0, 3), b"nEw");
        assert_eq!(nodes.depth(left), 2);
        assert_eq!(nodes.merge_into_parent(root), None);
    }

    #[test]
    fn zeroes_that_are_written_are_allocated() {
        let mut nodes = Nodes::default();
        let vhd = nodes.create(None, false);
        assert_eq!(nodes.growth(vhd, BLOCK_SIZE - 1, 2), 2 * BLOCK_SIZE);
        nodes.write(vhd, BLOCK_SIZE - 1, &[0, 0]);
        assert_eq!(nodes.utilisation(vhd), 2 * BLOCK_SIZE);
        assert_eq!(nodes.growth(vhd, BLOCK_SIZE - 1, 2), 0);
        assert_eq!(nodes.full_blocks(vhd), BTreeSet::from([0, 1]));

        let raw = nodes.create(None, true);
        nodes.write(raw, 0, &[0]);
        nodes.write(raw, BLOCK_SIZE, &[1]);
        assert_eq!(nodes.full_blocks(raw), BTreeSet::from([1]), "a raw file shows content only");
    }
}
