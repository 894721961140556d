#include "textflag.h"

#define SYS_clone3 435

// func spawn(arguments *cloneArgs, size uintptr, c *child) (pid int)
TEXT ·spawn(SB),NOSPLIT|NOFRAME,$0-32
	MOVD	arguments+0(FP), R0
	MOVD	size+8(FP), R1
	MOVD	c+16(FP), R9	// which the kernel leaves alone
	MOVD	$SYS_clone3, R8
	SVC
	CBZ	R0, child
	MOVD	R0, pid+24(FP)
	RET

child:
	// RSP is the end of the child's stack.
	SUB	$32, RSP
	MOVD	R9, 8(RSP)
	CALL	·standBy(SB)
	UNDEF
