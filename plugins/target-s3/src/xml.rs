//! What an object store answers, and the two documents that are sent to it.

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;

/// Deepest nesting that is read. An answer is four deep.
const MAX_DEPTH: usize = 16;

/// An element: its name, its text, and the elements in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) children: Vec<Self>,
}

impl Element {
    /// The root of a document. What is wrong with one that is none is said in a few words.
    pub(crate) fn parse(document: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(document).map_err(|_| "it is not UTF-8".to_owned())?;
        let mut reader = Reader::from_str(text);
        // The root's parent, and whatever is open in it.
        let mut open = vec![Self::default()];
        loop {
            let event = reader.read_event().map_err(|error| error.to_string())?;
            let depth = open.len();
            let Some(current) = open.last_mut() else { return Err("it has more ends than beginnings".to_owned()) };
            match event {
                Event::Start(_) if depth > MAX_DEPTH => return Err(format!("it is nested deeper than {MAX_DEPTH}")),
                Event::Start(tag) => open.push(Self { name: tag.local_name().as_ref().to_owned(), ..Self::default() }),
                Event::Empty(tag) => {
                    current.children.push(Self { name: tag.local_name().as_ref().to_owned(), ..Self::default() });
                }
                Event::End(_) => {
                    let done = std::mem::take(current);
                    open.pop();
                    let Some(parent) = open.last_mut() else {
                        return Err("it has more ends than beginnings".to_owned());
                    };
                    parent.children.push(done);
                }
                Event::Text(text) => current.text.push_str(&text),
                Event::CData(text) => current.text.push_str(&text),
                Event::GeneralRef(reference) => match reference.resolve_char_ref() {
                    Ok(Some(letter)) => current.text.push(letter),
                    _ => {
                        current.text.push_str(resolve_predefined_entity(&reference).ok_or("it has an unknown entity")?)
                    }
                },
                Event::Eof if depth == 1 => {
                    return std::mem::take(&mut current.children).pop().ok_or_else(|| "it is empty".to_owned());
                }
                Event::Eof => return Err("it breaks off".to_owned()),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
            }
        }
    }

    /// The text of the first element of this name in it.
    pub(crate) fn text_of(&self, name: &str) -> Option<&str> {
        self.children.iter().find_map(|child| (child.name == name).then_some(child.text.as_str()))
    }

    /// The elements of this name in it.
    pub(crate) fn all<'a>(&'a self, name: &'static str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }
}

/// One part of an upload that is complete.
pub(crate) struct Part {
    pub(crate) etag: String,
    /// Its check sum in Base64.
    pub(crate) crc32c: Option<String>,
}

/// Asks to make an object of its parts.
pub(crate) fn complete(parts: &[Part]) -> String {
    let mut document = String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for (number, part) in (1..).zip(parts) {
        document.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag>", escaped(&part.etag)));
        if let Some(sum) = &part.crc32c {
            document.push_str(&format!("<ChecksumCRC32C>{sum}</ChecksumCRC32C>"));
        }
        document.push_str("</Part>");
    }
    document.push_str("</CompleteMultipartUpload>");
    document
}

fn escaped(text: &str) -> std::borrow::Cow<'_, str> {
    quick_xml::escape::escape(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_with_its_references() {
        let document = b"<?xml version=\"1.0\"?>\n<List xmlns=\"x\"><Key>a&amp;b&#47;</Key><Owner/><Key>c</Key></List>";
        let root = Element::parse(document).expect("an answer");
        assert_eq!((root.name.as_str(), root.text_of("Key")), ("List", Some("a&b/")));
        assert_eq!(root.all("Key").count(), 2);
        assert_eq!(root.text_of("Owner"), Some(""));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let deep = "<a>".repeat(MAX_DEPTH + 1);
        for wrong in ["", "text", "<a>", "</a>", "<a></b>", "<a>&unknown;</a>", "\u{0}", &deep] {
            assert!(Element::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(Element::parse(b"\xff").is_err());
    }

    #[test]
    fn an_upload_is_completed_with_what_each_part_is() {
        let part = |etag: &str, crc32c: Option<&str>| Part { etag: etag.to_owned(), crc32c: crc32c.map(str::to_owned) };
        let document = complete(&[part("\"e1\"", Some("AAAAAA==")), part("e2", None)]);
        let root = Element::parse(document.as_bytes()).expect("well-formed");
        let parts: Vec<_> = root.all("Part").collect();
        assert_eq!(parts[0].text_of("ETag"), Some("\"e1\""));
        assert_eq!((parts[0].text_of("PartNumber"), parts[0].text_of("ChecksumCRC32C")), (Some("1"), Some("AAAAAA==")));
        assert_eq!((parts[1].text_of("PartNumber"), parts[1].text_of("ChecksumCRC32C")), (Some("2"), None));
    }
}
