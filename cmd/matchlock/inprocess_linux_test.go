package main

import "github.com/matchlock/matchlock/vm/vmtest"

func init() {
	withoutVM = vmtest.InProcess{}
	programs[faulty] = beFaulty
}
