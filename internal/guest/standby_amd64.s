#include "textflag.h"

#define SYS_clone3 435

// func spawn(arguments *cloneArgs, size uintptr, c *child) (pid int)
TEXT ·spawn(SB),NOSPLIT,$0-32
	MOVQ	arguments+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	c+16(FP), R12	// which the kernel leaves alone
	MOVL	$SYS_clone3, AX
	SYSCALL
	TESTQ	AX, AX
	JZ	child
	MOVQ	AX, pid+24(FP)
	RET

child:
	// SP is the end of the child's stack.
	SUBQ	$16, SP
	MOVQ	R12, 0(SP)
	CALL	·standBy(SB)
	INT	$3
