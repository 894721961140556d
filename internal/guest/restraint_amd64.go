//go:build linux

package guest

import "golang.org/x/sys/unix"

var deniedOnThisArch = []denied{
	{unix.SYS_IOPERM, lift(unix.CAP_SYS_RAWIO)},
	{unix.SYS_IOPL, lift(unix.CAP_SYS_RAWIO)},
	{unix.SYS_USELIB, 0},
	{unix.SYS_USTAT, 0},
	{unix.SYS_SYSFS, 0},
	{unix.SYS__SYSCTL, 0},
	{unix.SYS_CREATE_MODULE, lift(unix.CAP_SYS_MODULE)},
	{unix.SYS_GET_KERNEL_SYMS, 0},
	{unix.SYS_QUERY_MODULE, 0},
}
