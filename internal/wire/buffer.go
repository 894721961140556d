package wire

// blockSize is the unit of received data. Small pieces share a block, so that a
// peer that sends single bytes costs no more than one that does not.
const blockSize = 16 << 10

// maxFree blocks are kept by a session for reuse.
const maxFree = 32

type block [blockSize]byte

// A buffer is a queue of bytes in blocks. It is guarded by session.mu, and takes
// its blocks from the session.
type buffer struct {
	blocks []*block
	start  int // of the data in the first block
	size   int
}

func (b *buffer) append(p []byte, m *session) {
	for len(p) > 0 {
		end := b.start + b.size
		if end == len(b.blocks)*blockSize {
			b.blocks = append(b.blocks, m.newBlock())
		}
		n := copy(b.blocks[end/blockSize][end%blockSize:], p)
		b.size += n
		p = p[n:]
	}
}

func (b *buffer) read(p []byte, m *session) int {
	total := 0
	for len(p) > 0 && b.size > 0 {
		n := copy(p, b.blocks[0][b.start:min(blockSize, b.start+b.size)])
		p = p[n:]
		total += n
		b.start += n
		b.size -= n
		if b.start == blockSize || b.size == 0 {
			m.freeBlock(b.blocks[0])
			b.blocks[0] = nil
			b.blocks, b.start = b.blocks[1:], 0
		}
	}
	return total
}

// release drops all data.
func (b *buffer) release(m *session) {
	for _, block := range b.blocks {
		m.freeBlock(block)
	}
	*b = buffer{}
}

func (m *session) newBlock() *block {
	if n := len(m.free); n > 0 {
		b := m.free[n-1]
		m.free = m.free[:n-1]
		return b
	}
	return new(block)
}

func (m *session) freeBlock(b *block) {
	if len(m.free) < maxFree {
		m.free = append(m.free, b)
	}
}
