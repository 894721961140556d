package agent

import (
	"io"
	"strconv"
	"strings"
	"time"
)

// layerEntry is the header of one file in a layer's tar.
type layerEntry struct {
	kind         byte   // as ustar has it
	path, link   string // relative to the root
	mode         uint32 // permission bits
	uid, gid     uint32
	modTime      time.Time
	size         int64 // of a regular file
	major, minor uint32
	xattrs       []xattr
	data         []extent // of a sparse file: where it is not a hole; nil: it is not sparse
}

type xattr struct{ name, value string }

// extent is a part of a file.
type extent struct{ offset, size int64 }

// Kinds of entries (pax(1), ustar).
const (
	tarRegular = '0'
	tarLink    = '1'
	tarSymlink = '2'
	tarChar    = '3'
	tarBlock   = '4'
	tarDir     = '5'
	tarFIFO    = '6'
	tarPAX     = 'x'
)

const tarBlockSize = 512

// layerTar writes the headers of a tar in the form of POSIX.1-2001. What archive/tar
// cannot write is files with holes, which are in GNU tar's form 1.0.
type layerTar struct{ w io.Writer }

// header writes an entry's header, and of a sparse file where its data belongs: the data
// itself follows, and pad.
func (t layerTar) header(e *layerEntry) error {
	name, size, sparse := e.path, e.size, ""
	if e.kind == tarDir {
		name += "/"
	}
	pax := paxRecord(nil, "mtime", paxTime(e.modTime))
	if e.data != nil {
		sparse = sparseMap(e.data, e.size)
		pax = paxRecord(pax, "GNU.sparse.major", "1")
		pax = paxRecord(pax, "GNU.sparse.minor", "0")
		pax = paxRecord(pax, "GNU.sparse.name", name)
		pax = paxRecord(pax, "GNU.sparse.realsize", strconv.FormatInt(size, 10))
		name, size = "GNUSparseFile.0/"+name, int64(len(sparse))
		for _, d := range e.data {
			size += d.size
		}
	}
	var b [tarBlockSize]byte
	pax = paxText(pax, b[0:100], "path", name)
	pax = paxText(pax, b[157:257], "linkpath", e.link)
	pax = paxNumber(pax, b[108:116], "uid", int64(e.uid))
	pax = paxNumber(pax, b[116:124], "gid", int64(e.gid))
	pax = paxNumber(pax, b[124:136], "size", size)
	for _, x := range e.xattrs {
		pax = paxRecord(pax, "SCHILY.xattr."+x.name, x.value)
	}
	octal(b[100:108], int64(e.mode))
	octal(b[136:148], min(max(e.modTime.Unix(), 0), 1<<33-1))
	octal(b[329:337], int64(e.major))
	octal(b[337:345], int64(e.minor))

	var x [tarBlockSize]byte
	copy(x[0:], "PaxHeaders.0/"+name[:min(len(name), 64)])
	for _, field := range [][]byte{x[100:108], x[108:116], x[116:124], x[136:148], x[329:337], x[337:345]} {
		octal(field, 0)
	}
	octal(x[124:136], int64(len(pax)))
	if err := t.block(&x, tarPAX); err != nil {
		return err
	}
	if err := t.padded(pax); err != nil {
		return err
	}
	if err := t.block(&b, e.kind); err != nil || sparse == "" {
		return err
	}
	_, err := io.WriteString(t.w, sparse)
	return err
}

// block completes a header and writes it.
func (t layerTar) block(b *[tarBlockSize]byte, kind byte) error {
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	octal(b[148:155], int64(sum))
	_, err := t.w.Write(b[:])
	return err
}

func (t layerTar) padded(content []byte) error {
	if _, err := t.w.Write(content); err != nil {
		return err
	}
	return t.pad(int64(len(content)))
}

// pad ends what has so many bytes.
func (t layerTar) pad(size int64) error {
	_, err := t.w.Write(make([]byte, -size&(tarBlockSize-1)))
	return err
}

// end ends the archive.
func (t layerTar) end() error {
	_, err := t.w.Write(make([]byte, 2*tarBlockSize))
	return err
}

// sparseMap says where in a file the data belongs that follows.
func sparseMap(data []extent, size int64) string {
	var b strings.Builder
	line := func(n int64) { b.WriteString(strconv.FormatInt(n, 10) + "\n") }
	line(int64(len(data) + 1))
	for _, d := range append(data, extent{size, 0}) { // the last one is where the file ends
		line(d.offset)
		line(d.size)
	}
	b.WriteString(strings.Repeat("\x00", -b.Len()&(tarBlockSize-1)))
	return b.String()
}

// paxRecord appends a record of an extended header: its own length, in decimal, comes first.
func paxRecord(b []byte, key, value string) []byte {
	rest := len(" =\n") + len(key) + len(value)
	size := rest + len(strconv.Itoa(rest))
	size = rest + len(strconv.Itoa(size)) // its digits may have made it a digit longer
	b = strconv.AppendInt(b, int64(size), 10)
	return append(b, " "+key+"="+value+"\n"...)
}

// paxText puts a text into a header's field, and into a record if it does not fit or is
// not what all programs read in the same way.
func paxText(pax, field []byte, key, text string) []byte {
	copy(field, text)
	if len(text) <= len(field) && strings.IndexFunc(text, func(r rune) bool { return r >= 0x80 }) < 0 {
		return pax
	}
	return paxRecord(pax, key, text)
}

// paxNumber does so with a number.
func paxNumber(pax, field []byte, key string, n int64) []byte {
	if n < 1<<(3*(len(field)-1)) {
		octal(field, n)
		return pax
	}
	octal(field, 0)
	return paxRecord(pax, key, strconv.FormatInt(n, 10))
}

// octal fills a field with a number that fits, and a NUL.
func octal(field []byte, n int64) {
	digits := strconv.FormatInt(n, 8)
	copy(field, strings.Repeat("0", len(field)-1-len(digits))+digits)
}

// paxTime is a time in seconds since 1970, with a fraction.
func paxTime(t time.Time) string {
	seconds, nanoseconds, sign := t.Unix(), t.Nanosecond(), ""
	if nanoseconds == 0 {
		return strconv.FormatInt(seconds, 10)
	}
	if seconds < 0 { // the fraction counts away from 0
		seconds, nanoseconds, sign = -(seconds + 1), 1e9-nanoseconds, "-"
	}
	fraction := strconv.Itoa(1e9 + nanoseconds)[1:]
	return sign + strconv.FormatInt(seconds, 10) + "." + strings.TrimRight(fraction, "0")
}
