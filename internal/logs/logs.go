// Package logs answers one question: how is what a sandbox says kept, while it says it and afterwards? As lines with
// times in a file that is rotated, of which every byte comes back.
//
// A line of the file is a record, in the format that Kubernetes' CRI has for the logs of containers:
//
//	2026-11-26T15:04:05.123456789Z stdout F a line
//	2026-11-26T15:04:05.234567891Z stdout P half a
//	2026-11-26T15:04:06.345678912Z stdout F  line
//
// It has a time in UTC, a stream, a tag, and content, which is any bytes but newline. Tag F says that a newline
// followed the content, P that none did so far. All content of a stream, with a newline after each F, is what was
// written to that stream.
//
// The file at path is the one written to, path.1 the one before, and so on up. Each begins with a record of the
// stream matchlock that gives its number, "file 7", by which readers tell one from the other under any name; no reader
// passes it on. Other records of that stream say what is missing where, and what the supervisor has to say.
//
// A log has one writer at a time, which the caller sees to, and any number of readers in any process. They agree
// without a lock: the writer only ever appends whole records, renames whole files upwards, and takes back half a
// record that a full disk left.
//
// The package shows nothing to a terminal, and does not know how another process learns that a file has grown.
package logs

import (
	"bytes"
	"strconv"
	"time"
)

// Own is the stream in which the log speaks of itself.
const Own = "matchlock"

const (
	timeFormat = "2006-01-02T15:04:05.000000000Z"
	maxStream  = 16       // bytes of a stream's name
	maxContent = 16 << 10 // bytes of content that are written as one record
	maxLine    = 64 << 10 // bytes of a line, with its end, that are read as one record
)

// A Record is a line that a stream said, or a part of it.
type Record struct {
	Time    time.Time
	Stream  string
	Partial bool   // no newline followed Content; the line goes on with the next record of the stream, if it does
	Content []byte // without the newline, as whoever wrote it wanted: it may be hostile to a terminal
}

// A Position is a place between two records of a log. It holds as long as the log does, whatever is renamed. The zero
// Position is before the first record.
type Position struct {
	File   uint64 `json:"file"`   // the number that the file begins with
	Offset int64  `json:"offset"` // in bytes
}

// appendHead begins a record: what follows is the tag.
func appendHead(b []byte, at time.Time, stream string) []byte {
	b = at.UTC().AppendFormat(b, timeFormat)
	b = append(b, ' ')
	b = append(b, stream...)
	return append(b, ' ')
}

// appendRecord appends a record that starts as head does.
func appendRecord(b, head []byte, tag byte, content []byte) []byte {
	b = append(b, head...)
	b = append(b, tag, ' ')
	b = append(b, content...)
	return append(b, '\n')
}

// parse takes a line, without its end, for a record, or says that it is none. Content is a part of the line.
func parse(line []byte) (Record, bool) {
	stamp, rest, ok := cut(line, len(timeFormat))
	if !ok || !looksLikeTime(stamp) {
		return Record{}, false
	}
	at, err := time.Parse(timeFormat, string(stamp))
	if err != nil {
		return Record{}, false
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok || !validStream(string(stream)) {
		return Record{}, false
	}
	tag, content, ok := cut(rest, 1)
	if !ok || tag[0] != 'F' && tag[0] != 'P' {
		return Record{}, false
	}
	return Record{Time: at, Stream: string(stream), Partial: tag[0] == 'P', Content: content}, true
}

// looksLikeTime reports whether each digit of timeFormat is a digit, and all else as it is there: package time would
// take a comma for the point and a sign for a digit.
func looksLikeTime(stamp []byte) bool {
	for i, c := range stamp {
		if want := timeFormat[i]; want >= '0' && want <= '9' {
			if c < '0' || c > '9' {
				return false
			}
		} else if c != want {
			return false
		}
	}
	return true
}

// cut splits a line at the space that must follow its first n bytes.
func cut(line []byte, n int) (before, after []byte, ok bool) {
	if len(line) <= n || line[n] != ' ' {
		return nil, nil, false
	}
	return line[:n], line[n+1:], true
}

func validStream(name string) bool {
	if len(name) == 0 || len(name) > maxStream {
		return false
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// said is how many bytes of its stream a record stands for.
func (r Record) said() int64 {
	if r.Partial {
		return int64(len(r.Content))
	}
	return int64(len(r.Content)) + 1
}

// numberPrefix begins the content of the first record of a file; the number follows.
const numberPrefix = "file "

// number returns the number of the file whose first record r is, or 0 when that says nothing of the kind.
func (r Record) number() uint64 {
	digits, ok := bytes.CutPrefix(r.Content, []byte(numberPrefix))
	if !ok || r.Stream != Own || r.Partial {
		return 0
	}
	n, err := strconv.ParseUint(string(digits), 10, 62) // the next ones are numbers too
	if err != nil {
		return 0
	}
	return n
}
