// Package sandbox is matchlock as a Go library: how does a program get a Linux
// machine of its own, made from a container image, and run commands in it?
//
//	sb, err := sandbox.New(ctx, api.Config{Image: "debian:12"})
//	if err != nil {
//		return err
//	}
//	defer sb.Close()
//	out, err := sb.Command(ctx, "uname", "-a").Output()
//
// A sandbox is a microVM: its kernel is its own, its files are the image's with
// a disk for what is written over them, and it ends, files and all, with Close
// or with the process that made it. There is no daemon. What a sandbox is made of
// stands in an [api.Config], how it is made on this host in [Options].
//
// # Commands
//
// [Sandbox.Command] returns a [Cmd], which is prepared and run as one of os/exec:
//
//	test := sb.Command(ctx, "go", "test", "./...")
//	test.Dir, test.Stdout, test.Stderr = "/src", os.Stdout, os.Stderr
//	err := test.Run()
//	if exit, ok := errors.AsType[*sandbox.ExitError](err); ok {
//		log.Print("it fails with ", exit.Code)
//	}
//
// [Sandbox.Main] is the command that the configuration or the image names, whose
// output goes into the sandbox's log too, and [Sandbox.Run] starts one that needs
// nobody to wait for it.
//
// # Files
//
// [Sandbox.FS] is an [fs.FS], with methods to write and to copy beside it:
//
//	files := sb.FS(ctx)
//	err := files.CopyIn(ctx, "testdata", "/work")
//	text, err := fs.ReadFile(files, "etc/os-release")
//
// Folders of the host that the guest works on are Mounts of the configuration;
// what it changes in one that is an overlay is told, and put on the host, by
// [Options.Overlay].
//
// # Network
//
// Ports of the guest are dialled, whether it has a network or not:
//
//	client := &http.Client{Transport: &http.Transport{DialContext: sb.DialContext}}
//
// The guest itself reaches what the configuration names, and nothing else. What it
// does, or tries, is told:
//
//	config.Network.Allow, err = api.ParseRules("pypi.org:443")
//	…
//	for event, err := range sb.Events(ctx) {
//		if err == nil && event.Verdict == api.Denied {
//			log.Print(sandbox.DenialText(event))
//		}
//	}
//
// [Sandbox.Policy] changes the rules while it runs, [Sandbox.Secrets] the keys that its
// requests carry without its knowing, and a [Hook] judges each request.
//
// # Copies
//
// A sandbox that runs can be copied, with its processes and their memory:
//
//	copies, err := sb.Fork(ctx, 8)
//
// [Sandbox.Snapshot] keeps a copy, and [Options.Restore] goes on from it.
//
// # Life
//
// The process that made a sandbox is its supervisor. However that ends, the machine
// ends with it; what it could not remove any more the next New does. Any other process
// of the same user, the program matchlock too, can reach the sandbox meanwhile: [Attach]
// gives a Sandbox that does all that the maker's does, but for Close, which only
// lets go of it; [List] finds them. A sandbox made with Options.Keep leaves its folder
// when it ends, and [Options.Start] makes it run again, its disk as it was.
//
// A ctx bounds the call that it is given to: that of New the making, not the
// sandbox's life. Those of Command, Main and FS bound what is done with the result.
// What takes a ctx returns its error when it ends.
//
// # Errors
//
// The text of an error is for people; programs use [errors.Is] and [errors.As]:
//
//   - [ErrNotFound]: what was named is not there. Of an image it is an [*ImageError],
//     as is whatever else keeps New from having it.
//   - [ErrNameTaken], [ErrSnapshotTaken], [ErrVolumeTaken]: something has the name.
//   - [ErrNoHelper]: New, Start and Restore do not find the program matchlock.
//   - [ErrNotRunning]: the sandbox has ended. All that needs its guest returns it;
//     Stop and Close do not.
//   - [ErrPaused]: what needs the guest has to wait for Resume.
//   - [ErrRunning]: Options.Start and Options.Remove of a sandbox that runs.
//   - [ErrDiskInUse]: a volume or disk is another sandbox's.
//   - [ErrNoCommand]: there is no first command.
//   - [ErrNoNetwork]: Policy and Secrets of a sandbox without a network.
//   - [*ExitError], [ErrTimeout], [ErrTooLarge]: how a Cmd ended.
//   - [*fs.PathError], [*SkippedError]: of an FS. [*net.OpError]: of DialContext.
//   - [*RefusedError]: of Overlay.Apply.
//   - [errors.ErrUnsupported]: a copy of a sandbox that writes to a volume.
//
// A configuration's faults are told all at once, see [api.Config.Validate]. An error
// whose way out is known has, somewhere in its chain, a method Hint() string with
// a phrase for the user.
//
// # What it needs
//
// Linux, QEMU 7.2 or later, e2fsprogs, and the program matchlock, which brings the guest's
// own first program: it is found as Options.Helper says. No cgo, no root. [Diagnose]
// looks at all of it.
//
// The package joins the parts and owns what they acquire; it does not itself
// fetch images, speak to hypervisors or know the guest's protocol. Larger
// programs are in the folder examples/go.
package sandbox
