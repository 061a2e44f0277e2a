//! Objects of a repository in a bucket.
//!
//! Payload does not pass through the plugin: it is spliced into the body of a request and out of the body of an answer. What
//! passes is asked again when the store is busy or the connection breaks, after a while that doubles each time. An upload
//! carries the CRC-32C of its bytes, which the store compares; what comes back is checked by who wrote it.

use crate::bucket::Bucket;
use crate::xml::{self, Element};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use std::time::{Duration, SystemTime};
use vmferry_plugin_api::http::{Head, Reply, exchange};
use vmferry_plugin_api::stream::{Input, Output};
use vmferry_plugin_api::target::Checksum;
use vmferry_plugin_api::{Error, ErrorCode, calendar, log};
use vmferry_repository::{Object, Piece, Storage};

/// How often a request is sent.
const ATTEMPTS: u32 = 5;

/// The longest time between two attempts, also where the store asks for more: a call without progress has an end.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The most of an answer that is read as a document. A listing has a thousand names.
const MOST_XML: u64 = 4 << 20;

/// When the host may ask again after all attempts failed, in seconds.
const RETRY_AFTER: u64 = 60;

/// Says who made an object, so that an attempt whose answer was lost is told from another's success.
const MAKER: &str = "x-amz-meta-vmferry-maker";

const CRC32C: &str = "x-amz-checksum-crc32c";

const LOCK_MODE: &str = "x-amz-object-lock-mode";

/// A bucket as a place for a repository.
#[derive(Debug)]
pub struct Store {
    bucket: Bucket,
    /// The time before the second attempt.
    pause: Duration,
}

/// A request.
struct Ask<'a> {
    method: &'a str,
    /// The object, or the bucket itself.
    name: Option<&'a str>,
    query: &'a [(&'a str, &'a str)],
    headers: Vec<(&'a str, String)>,
    length: u64,
    write: &'a dyn Fn(&Output) -> Result<(), Error>,
    /// What is an answer beside success.
    expected: &'a [u16],
}

impl<'a> Ask<'a> {
    fn new(method: &'a str, name: Option<&'a str>, query: &'a [(&'a str, &'a str)]) -> Self {
        Self { method, name, query, headers: Vec::new(), length: 0, write: &|_| Ok(()), expected: &[] }
    }
}

/// An answer, and whether an earlier attempt may have been heard as well.
struct Told {
    reply: Reply,
    again: bool,
}

/// A part of a piece. Payloads are not divided.
struct Slice<'a> {
    piece: &'a Piece<'a>,
    offset: u64,
    length: u64,
}

impl Store {
    /// The repository in this bucket.
    pub fn new(bucket: Bucket) -> Self {
        Self { bucket, pause: Duration::from_millis(500) }
    }

    /// With another time before the second attempt.
    pub fn with_pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    fn ask(&self, ask: &Ask<'_>) -> Result<Told, Error> {
        let url = self.bucket.url(ask.name, ask.query);
        let headers = ask.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let head = Head { method: ask.method.to_owned(), url, headers };
        let (mut pause, mut attempt) = (self.pause, 1);
        loop {
            let (error, wanted) = match exchange(&head, ask.length, ask.write) {
                Ok(reply) if (200..300).contains(&reply.status) || ask.expected.contains(&reply.status) => {
                    return Ok(Told { reply, again: attempt > 1 });
                }
                Ok(reply) => {
                    let refusal = Refusal::read(&reply);
                    let wanted = reply.header("retry-after").and_then(|seconds| seconds.parse().ok());
                    (refusal.error(self, ask), refusal.is_passing().then(|| Duration::from_secs(wanted.unwrap_or(0))))
                }
                Err(error) => {
                    let wanted = (error.code == ErrorCode::Unavailable).then_some(Duration::ZERO);
                    (error, wanted)
                }
            };
            let Some(wanted) = wanted.filter(|_| attempt < ATTEMPTS) else { return Err(error) };
            log::debug(format!("attempt {attempt}: {}", error.message));
            std::thread::sleep(pause.max(wanted).min(LONGEST_PAUSE));
            (pause, attempt) = (pause * 2, attempt + 1);
        }
    }

    /// The document that an answer is.
    fn document(&self, ask: &Ask<'_>) -> Result<Element, Error> {
        let told = self.ask(ask)?;
        let document = told.reply.read(MOST_XML)?;
        Element::parse(&document).map_err(|what| self.strange(ask, &format!("sent XML that cannot be read: {what}")))
    }

    /// An answer that no object store gives.
    fn strange(&self, ask: &Ask<'_>, what: &str) -> Error {
        let url = self.bucket.url(ask.name, &[]);
        Error::with_code(ErrorCode::Unsupported, format!("{}: the server {what}; is it an object store?", url))
    }

    /// What an object is made with.
    fn made_with(&self, maker: Option<&str>) -> Vec<(&'static str, String)> {
        let mut headers = vec![("content-type", "application/octet-stream".to_owned())];
        if let Some(maker) = maker {
            headers.push((MAKER, maker.to_owned()));
        }
        if let Some(lock) = self.bucket.lock {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            headers.push((LOCK_MODE, lock.mode.name().to_owned()));
            let until = now as i64 + i64::from(lock.days) * 24 * 60 * 60;
            headers.push(("x-amz-object-lock-retain-until-date", calendar::rfc3339(until)));
        }
        headers
    }

    /// Whether the object that is there is the one that this maker made.
    fn is_by(&self, name: &str, maker: &str) -> Result<bool, Error> {
        let told = self.ask(&Ask { expected: &[404], ..Ask::new("HEAD", Some(name), &[]) })?;
        Ok(told.reply.status != 404 && told.reply.header(MAKER) == Some(maker))
    }

    /// Takes an object back that was to be locked and is not: a store that knows no Object Lock may ignore what asks for it.
    fn require_lock(&self, name: &str) -> Result<(), Error> {
        let Some(lock) = self.bucket.lock else { return Ok(()) };
        let told = self.ask(&Ask::new("HEAD", Some(name), &[]))?;
        if told.reply.header(LOCK_MODE) == Some(lock.mode.name()) {
            return Ok(());
        }
        self.delete(name)?;
        let url = self.bucket.url(Some(name), &[]);
        let text = format!(
            "{url}: the store does not say that this is locked, so it was deleted; take a store and a bucket with Object Lock, or \
             `lock` out of the settings. The credential has to allow s3:GetObjectRetention, or no lock is told"
        );
        Err(Error::with_code(ErrorCode::Unsupported, text))
    }

    /// Makes an object by one request.
    fn put_whole(&self, name: &str, slices: &[Slice<'_>]) -> Result<(), Error> {
        let mut headers = self.made_with(None);
        let sum = self.checksum(slices)?;
        headers.extend(sum.iter().flat_map(|sum| summed(sum)));
        let write = |output: &Output| self.write(slices, output);
        let ask = Ask { headers, length: length(slices), write: &write, ..Ask::new("PUT", Some(name), &[]) };
        let told = self.ask(&ask)?;
        self.compare(&ask, sum.as_deref(), &told.reply)
    }

    /// Makes an object by several requests. What was sent of one that failed is forgotten.
    fn put_in_parts(&self, name: &str, parts: &[Vec<Slice<'_>>]) -> Result<(), Error> {
        let maker = random()?;
        let mut headers = self.made_with(Some(&maker));
        let sums: Vec<Option<String>> = parts.iter().map(|part| self.checksum(part)).collect::<Result<_, _>>()?;
        // A store that is told of check sums wants one of every part.
        let all_summed = sums.iter().all(Option::is_some);
        if all_summed {
            headers.push(("x-amz-checksum-algorithm", "CRC32C".to_owned()));
        }
        let begin = Ask { headers, ..Ask::new("POST", Some(name), &[("uploads", "")]) };
        let begun = self.document(&begin)?;
        let upload = begun.text_of("UploadId").ok_or_else(|| self.strange(&begin, "began an upload without an id"))?;
        let sent = self.send_parts(name, upload, parts, &sums, all_summed, &maker);
        if sent.is_err() {
            let query = [("uploadId", upload)];
            if let Err(error) = self.ask(&Ask { expected: &[404], ..Ask::new("DELETE", Some(name), &query) }) {
                log::warn(format!("what was sent of {name} stays in the bucket: {}", error.message));
            }
        }
        sent
    }

    fn send_parts(
        &self,
        name: &str,
        upload: &str,
        parts: &[Vec<Slice<'_>>],
        sums: &[Option<String>],
        all_summed: bool,
        maker: &str,
    ) -> Result<(), Error> {
        let mut complete = Vec::new();
        for ((number, slices), sum) in (1..).zip(parts).zip(sums) {
            let number: u32 = number;
            let sum = sum.clone().filter(|_| all_summed);
            let write = |output: &Output| self.write(slices, output);
            let number = number.to_string();
            let query = [("partNumber", number.as_str()), ("uploadId", upload)];
            let headers = sum.iter().flat_map(|sum| summed(sum)).collect();
            let ask = Ask { headers, length: length(slices), write: &write, ..Ask::new("PUT", Some(name), &query) };
            let told = self.ask(&ask)?;
            self.compare(&ask, sum.as_deref(), &told.reply)?;
            let etag = told.reply.header("etag").ok_or_else(|| self.strange(&ask, "took a part without an ETag"))?;
            complete.push(xml::Part { etag: etag.to_owned(), crc32c: sum });
        }
        let document = xml::complete(&complete);
        let write = |output: &Output| output.write_all(document.as_bytes());
        let query = [("uploadId", upload)];
        let length = document.len() as u64;
        let ask = Ask { length, write: &write, expected: &[403, 404], ..Ask::new("POST", Some(name), &query) };
        let mut attempt = 1;
        loop {
            let told = self.ask(&ask)?;
            // An upload that an earlier attempt completed is not known any more; some stores say that it is another's.
            if matches!(told.reply.status, 403 | 404) {
                return match (told.again || attempt > 1) && self.is_by(name, maker)? {
                    true => Ok(()),
                    false => Err(Refusal::read(&told.reply).error(self, &ask)),
                };
            }
            // The store says "200 OK" before it begins, and may fail afterwards.
            let answer = Element::parse(&told.reply.read(MOST_XML)?).unwrap_or_default();
            match answer.name.as_str() {
                "CompleteMultipartUploadResult" => return Ok(()),
                "Error" if attempt < ATTEMPTS => std::thread::sleep(self.pause * attempt),
                "Error" => return Err(Refusal::of(500, &answer).error(self, &ask)),
                _ => return Err(self.strange(&ask, "completed an upload without saying so")),
            }
            attempt += 1;
        }
    }

    fn write(&self, slices: &[Slice<'_>], output: &Output) -> Result<(), Error> {
        for Slice { piece, offset, length } in slices {
            match piece {
                Piece::Bytes(bytes) => {
                    let bytes = bytes.get(*offset as usize..(*offset + *length) as usize);
                    output.write_all(bytes.unwrap_or_default())?;
                }
                Piece::Payload(payload) => output.splice_all(&payload.body()?, *length)?,
                Piece::Range { name, offset: from, .. } => {
                    let gone = || Error::not_found(format!("{} is gone", self.bucket.url(Some(name), &[])));
                    output.splice_all(&self.open(name, from + offset, *length)?.ok_or_else(gone)?, *length)?;
                }
            }
        }
        Ok(())
    }

    /// CRC-32C in Base64. There is none of what was only seen by the store.
    fn checksum(&self, slices: &[Slice<'_>]) -> Result<Option<String>, Error> {
        let mut all = 0;
        for Slice { piece, offset, length } in slices {
            let one = match piece {
                Piece::Bytes(bytes) => {
                    crc32c::crc32c(bytes.get(*offset as usize..(*offset + *length) as usize).unwrap_or_default())
                }
                Piece::Payload(payload) => {
                    let sum = payload.checksum(&Checksum::Crc32c)?;
                    let odd = |_| Error::with_code(ErrorCode::Unsupported, "the host's CRC-32C does not have 4 bytes");
                    u32::from_be_bytes(sum.try_into().map_err(odd)?)
                }
                Piece::Range { .. } => return Ok(None),
            };
            all = crc32c::crc32c_combine(all, one, *length as usize);
        }
        Ok(Some(STANDARD.encode(all.to_be_bytes())))
    }

    /// Compares a check sum with the store's own, where it tells it.
    fn compare(&self, ask: &Ask<'_>, sent: Option<&str>, reply: &Reply) -> Result<(), Error> {
        match (sent, reply.header(CRC32C)) {
            (Some(sent), Some(kept)) if sent != kept => {
                let url = self.bucket.url(ask.name, &[]);
                Err(Error::damaged(format!("{url}: the store kept other bytes than were sent: {kept} and not {sent}")))
            }
            _ => Ok(()),
        }
    }
}

impl Storage for Store {
    fn put(&self, name: &str, pieces: &[Piece<'_>]) -> Result<(), Error> {
        let size = self.bucket.part_size;
        let slices: Vec<Slice<'_>> =
            pieces.iter().map(|piece| Slice { piece, offset: 0, length: piece.length() }).collect();
        if length(&slices) <= size {
            self.put_whole(name, &slices)
        } else {
            self.put_in_parts(name, &parts(slices, size))
        }
    }

    /// What is locked needs a check sum before it is sent, which a range of another object does not have.
    fn takes_ranges(&self) -> bool {
        self.bucket.lock.is_none()
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<bool, Error> {
        let maker = random()?;
        let mut headers = self.made_with(Some(&maker));
        headers.push(("if-none-match", "*".to_owned()));
        headers.extend(summed(&STANDARD.encode(crc32c::crc32c(bytes).to_be_bytes())));
        let write = |output: &Output| output.write_all(bytes);
        let length = bytes.len() as u64;
        let told =
            self.ask(&Ask { headers, length, write: &write, expected: &[412], ..Ask::new("PUT", Some(name), &[]) })?;
        let is_made = match told.reply.status {
            // The answer to an earlier attempt may have been lost.
            412 if told.again => self.is_by(name, &maker)?,
            412 => false,
            _ => true,
        };
        if is_made {
            self.require_lock(name)?;
        }
        Ok(is_made)
    }

    fn open(&self, name: &str, offset: u64, length: u64) -> Result<Option<Input>, Error> {
        if length == 0 {
            let told = self.ask(&Ask { expected: &[404], ..Ask::new("HEAD", Some(name), &[]) })?;
            return Ok((told.reply.status != 404).then_some(told.reply.body));
        }
        let range = format!("bytes={offset}-{}", offset.saturating_add(length - 1));
        let headers = vec![("range", range)];
        let ask = Ask { headers, expected: &[404, 416], ..Ask::new("GET", Some(name), &[]) };
        let reply = self.ask(&ask)?.reply;
        match reply.status {
            206 => Ok(Some(reply.body)),
            404 => match Refusal::read(&reply) {
                refusal if refusal.code == "NoSuchKey" => Ok(None),
                // Of the bucket, or of something on the way to it.
                refusal => Err(refusal.error(self, &ask)),
            },
            // It ends before: read to its end, the answer is what there is.
            416 => {
                while !reply.body.read(MOST_XML)?.is_empty() {}
                Ok(Some(reply.body))
            }
            _ => Err(self.strange(&ask, "does not give parts of objects")),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<Object>, Error> {
        let prefix = self.bucket.key(prefix);
        let mut objects = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let mut query = vec![("list-type", "2"), ("prefix", prefix.as_str()), ("encoding-type", "url")];
            query.extend(next.as_deref().map(|token| ("continuation-token", token)));
            let ask = Ask::new("GET", None, &query);
            let page = self.document(&ask)?;
            // What is taken for absent may be thrown away, so only a listing is believed.
            if page.name != "ListBucketResult" {
                return Err(self.strange(&ask, &format!("sent a <{}> for a listing", page.name)));
            }
            for entry in page.all("Contents") {
                let key = entry.text_of("Key").unwrap_or_default();
                let key = percent_decode_str(key).decode_utf8_lossy();
                let length = entry.text_of("Size").and_then(|size| size.parse().ok());
                let length = length.ok_or_else(|| self.strange(&ask, "lists an object without a size"))?;
                objects.extend(self.bucket.name(&key).map(|name| Object { name: name.to_owned(), length }));
            }
            match page.text_of("NextContinuationToken") {
                _ if page.text_of("IsTruncated") == Some("false") => break,
                Some(token) if next.as_deref() != Some(token) => next = Some(token.to_owned()),
                _ => return Err(self.strange(&ask, "lists a part of the bucket and does not say how to go on")),
            }
        }
        objects.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(objects)
    }

    fn delete(&self, name: &str) -> Result<(), Error> {
        let ask = Ask { expected: &[403, 404], ..Ask::new("DELETE", Some(name), &[]) };
        let reply = self.ask(&ask)?.reply;
        if (200..300).contains(&reply.status) {
            return Ok(());
        }
        let refusal = Refusal::read(&reply);
        match refusal.code.as_str() {
            "NoSuchKey" => Ok(()),
            "AccessDenied" if self.bucket.lock.is_some() => {
                log::warn(format!("{} is locked and stays until its time is over", self.bucket.url(Some(name), &[])));
                Ok(())
            }
            _ => Err(refusal.error(self, &ask)),
        }
    }

    fn adopt(&self, _name: &str) -> Result<(), Error> {
        Ok(())
    }

    /// What an object store has confirmed, it keeps.
    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// A check sum as a request carries it. Its name besides is what Object Lock asks for.
fn summed(sum: &str) -> [(&'static str, String); 2] {
    [("x-amz-sdk-checksum-algorithm", "CRC32C".to_owned()), (CRC32C, sum.to_owned())]
}

fn length(slices: &[Slice<'_>]) -> u64 {
    slices.iter().map(|slice| slice.length).sum()
}

/// Divides an object into parts of at least `size` bytes, but the last. Only a payload makes one larger.
fn parts(slices: Vec<Slice<'_>>, size: u64) -> Vec<Vec<Slice<'_>>> {
    let (mut parts, mut part, mut held) = (Vec::new(), Vec::new(), 0);
    for Slice { piece, mut offset, mut length } in slices {
        while length > 0 {
            let taken = if matches!(piece, Piece::Payload(_)) { length } else { length.min(size - held) };
            part.push(Slice { piece, offset, length: taken });
            (offset, length, held) = (offset + taken, length - taken, held + taken);
            if held >= size {
                parts.push(std::mem::take(&mut part));
                held = 0;
            }
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

/// A text that nobody else has.
fn random() -> Result<String, Error> {
    Ok(STANDARD.encode(crate::random::<16>()?))
}

/// Why a store did not do what it was asked.
struct Refusal {
    status: u16,
    code: String,
    message: String,
    /// The region that it is in, where it says that another was named.
    region: Option<String>,
}

impl Refusal {
    fn read(reply: &Reply) -> Self {
        let document = reply.read(MOST_XML).unwrap_or_default();
        Self::of(reply.status, &Element::parse(&document).unwrap_or_default())
    }

    fn of(status: u16, answer: &Element) -> Self {
        let text = |name| answer.text_of(name).unwrap_or_default().to_owned();
        let region = answer.text_of("Region").map(str::to_owned);
        Self { status, code: text("Code"), message: text("Message"), region }
    }

    /// Whether the same may succeed a moment later.
    fn is_passing(&self) -> bool {
        let passing = ["RequestTimeout", "SlowDown", "ConditionalRequestConflict", "OperationAborted", "BadDigest"];
        matches!(self.status, 408 | 429 | 500 | 502 | 503 | 504) || passing.contains(&self.code.as_str())
    }

    /// As an operator reads it, with what to do.
    fn error(&self, store: &Store, ask: &Ask<'_>) -> Error {
        let Self { status, code, message, region } = self;
        let said = match (code.as_str(), message.as_str()) {
            ("", _) => format!("{status}"),
            (code, "") => format!("{status} {code}"),
            (code, message) => format!("{status} {code}: {message}"),
        };
        let (kind, advice) = match code.as_str() {
            "RequestTimeTooSkewed" => (
                ErrorCode::Unavailable,
                "the clocks of this host and of the store differ too much: set this host's by NTP",
            ),
            "NoSuchBucket" => (ErrorCode::NotFound, "make the bucket, or correct `bucket`"),
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken" => {
                (ErrorCode::Denied, "correct the credential of this server under `[[plugin.target-s3.credentials]]`")
            }
            "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException" => {
                (ErrorCode::Denied, "name the bucket's own region in the credential, and its address in `endpoint`")
            }
            "NotImplemented" => (ErrorCode::Unsupported, "this store lacks what the settings ask for"),
            "InvalidRequest" if store.bucket.lock.is_some() => {
                (ErrorCode::Denied, "is the bucket made with Object Lock? `lock` needs it")
            }
            _ if matches!(*status, 401 | 403) => (
                ErrorCode::Denied,
                "the credential has to allow s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject and \
                 s3:AbortMultipartUpload, with `lock` s3:PutObjectRetention and s3:GetObjectRetention as well",
            ),
            _ if self.is_passing() => (ErrorCode::Unavailable, "it was asked several times"),
            _ => (ErrorCode::Other("rejected".to_owned()), "see what the store says of this code"),
        };
        let region = region.as_ref().map(|region| format!(" (region {region})")).unwrap_or_default();
        let url = store.bucket.url(ask.name, &[]);
        let text = format!("{} {url}: the store answered {said}{region}; {advice}", ask.method);
        match kind {
            ErrorCode::Unavailable => Error::unavailable(text, RETRY_AFTER),
            kind => Error::with_code(kind, text),
        }
    }
}
