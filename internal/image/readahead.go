package image

import "io"

// aheadReader reads from another reader in a goroutine of its own, a few blocks ahead of who reads from it.
type aheadReader struct {
	full  chan aheadBlock
	empty chan []byte
	quit  chan struct{} // closed by Close
	done  chan struct{} // closed when the goroutine has ended

	block aheadBlock // what Read is at
	rest  []byte
}

type aheadBlock struct {
	data []byte
	err  error // after data
}

const (
	aheadBlocks    = 4
	aheadBlockSize = 256 << 10
)

// readAhead starts reading r. Until Close has returned, r is the reader's.
func readAhead(r io.Reader) *aheadReader {
	a := &aheadReader{
		full:  make(chan aheadBlock, aheadBlocks),
		empty: make(chan []byte, aheadBlocks),
		quit:  make(chan struct{}),
		done:  make(chan struct{}),
	}
	for range aheadBlocks {
		a.empty <- nil // made when they are needed: many a stream is small
	}
	go a.run(r)
	return a
}

func (a *aheadReader) run(r io.Reader) {
	defer close(a.done)
	for {
		var data []byte
		select {
		case data = <-a.empty:
		case <-a.quit:
			return
		}
		if data == nil {
			data = make([]byte, aheadBlockSize)
		}
		n, err := fill(r, data[:aheadBlockSize])
		a.full <- aheadBlock{data[:n], err} // there is room: no more blocks are out than it holds
		if err != nil {
			return
		}
	}
}

// fill is io.ReadFull that leaves errors as they are: an end is not turned into an unexpected one, nor taken for it.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

func (a *aheadReader) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.block.err != nil {
			return 0, a.block.err
		}
		if a.block.data != nil {
			a.empty <- a.block.data
		}
		a.block = <-a.full
		a.rest = a.block.data
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close ends the goroutine, which it waits for.
func (a *aheadReader) Close() error {
	close(a.quit)
	<-a.done
	return nil
}
