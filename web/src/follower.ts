/** Keeps the end of a growing text in sight until the reader looks elsewhere. */

/** This near to the end, a reader who scrolls down has arrived there. */
const ARRIVED_PX = 80;
const LINE_PX = 16;
const UPWARD_KEYS = new Set(["ArrowUp", "PageUp", "Home"]);

export class Follower {
  private following = true;
  private top = 0;
  private height = 0;

  /** `changed` is called when following begins or ends. */
  constructor(
    private readonly scroller: HTMLElement,
    private readonly changed: (following: boolean) => void,
  ) {
    scroller.addEventListener("scroll", () => this.scrolled());
    // The wish itself counts, however small: the next piece of text would take a small movement back.
    scroller.addEventListener("wheel", (event) => this.wheel(event), { passive: true });
    let touched = 0;
    scroller.addEventListener("touchstart", ({ touches }) => (touched = touches[0]?.clientY ?? 0), { passive: true });
    scroller.addEventListener("touchmove", ({ touches }) => ((touches[0]?.clientY ?? 0) > touched ? this.leave() : undefined), { passive: true });
    scroller.addEventListener("keydown", ({ key, shiftKey }) => {
      if (UPWARD_KEYS.has(key) || (key === " " && shiftKey)) this.leave();
      else if (key === "End") this.set(true);
    });
  }

  /** Goes to the end, and stays there. */
  start(): void {
    this.set(true);
    this.follow();
  }

  /** Called when the text may have grown. */
  follow(): void {
    if (this.following) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.remember();
  }

  /** Scrolls by a share of what is in sight; negative is up. */
  turn(share: number): void {
    if (share < 0) this.leave();
    this.scroller.scrollBy({ top: share * this.scroller.clientHeight });
  }

  /** Down to the end as it is now counts, though the text may have grown when the movement gets there. */
  private wheel({ deltaY, deltaMode }: WheelEvent): void {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    const pixels = deltaMode === WheelEvent.DOM_DELTA_LINE ? deltaY * LINE_PX : deltaY;
    if (pixels < 0) this.leave();
    else if (pixels > 0 && scrollTop + pixels + clientHeight > scrollHeight - ARRIVED_PX) this.set(true);
  }

  private leave(): void {
    if (this.scroller.scrollHeight > this.scroller.clientHeight) this.set(false);
  }

  private scrolled(): void {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    // A text that shrinks moves the place by itself; only the reader moves it in a text that does not.
    if (scrollTop < this.top && scrollHeight >= this.height) this.set(false);
    else if (scrollTop > this.top && scrollHeight - scrollTop - clientHeight < ARRIVED_PX) this.set(true);
    this.remember();
  }

  private remember(): void {
    this.top = this.scroller.scrollTop;
    this.height = this.scroller.scrollHeight;
  }

  private set(following: boolean): void {
    this.following = following;
    this.changed(following);
  }
}
