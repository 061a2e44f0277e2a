//! Text for people: excerpts of what a server said, on one line, bounded and without secrets.

/// How much of a server's page is shown.
const EXCERPT: usize = 200;

const PREFIX: &str = "OpaqueRef:";

/// Replaces the variable part of every reference. A session reference is a credential and looks like any other,
/// so text that nobody has parsed loses them all.
pub(crate) fn mask_references(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(PREFIX) {
        let after = start + PREFIX.len();
        out.push_str(&rest[..after]);
        out.push('…');
        rest = rest[after..].trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-');
    }
    out.push_str(rest);
    out
}

/// Replaces each of `secrets` wherever it stands.
pub(crate) fn mask(text: &str, secrets: &[&str]) -> String {
    secrets.iter().filter(|s| !s.is_empty()).fold(text.to_owned(), |text, secret| text.replace(secret, "…"))
}

/// The gist of an HTML page or other body: no tags, one line, bounded, masked.
pub(crate) fn excerpt(body: &[u8], secrets: &[&str]) -> String {
    let text = mask_references(&mask(&String::from_utf8_lossy(body), secrets));
    let mut plain = String::new();
    let mut in_tag = false;
    for c in text.chars() {
        match c {
            '<' => in_tag = true,
            '>' => {
                in_tag = false;
                plain.push(' ');
            }
            _ if in_tag => {}
            c if c.is_control() => plain.push(' '),
            c => plain.push(c),
        }
    }
    plain.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(EXCERPT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_has_no_tags_and_no_secrets() {
        let page = b"<html><body><h1>HTTP 500</h1>\r\n failed for OpaqueRef:0a1b-22 with pa$$ </body></html>";
        assert_eq!(excerpt(page, &["pa$$", ""]), "HTTP 500 failed for OpaqueRef:… with …");
        assert_eq!(excerpt(&[b'x'; 5000], &[]).len(), EXCERPT);
    }

    #[test]
    fn every_reference_is_masked() {
        assert_eq!(mask_references("OpaqueRef:1,OpaqueRef:2-a;"), "OpaqueRef:…,OpaqueRef:…;");
        assert_eq!(mask_references("OpaqueRef:"), "OpaqueRef:…");
    }
}
